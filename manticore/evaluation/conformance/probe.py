"""A model on the examination table: one way to call any causal language model, and its truth.

The truth of every check is the model itself, run whole: one sequence at a time, without padding,
without a cache. What a check compares with it should be the same numbers by another road.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from manticore.seeds import torch_generator

# How the families name the argument, and the output, that carries the past.
_CACHE_NAMES = ("past_key_values", "cache_params", "state")


class NotApplicable(Exception):
    """Why a check says nothing about this model."""


@dataclass(frozen=True)
class Probe:
    """A model in evaluation mode and three rows of token ids to try it on.

    B = 3 rows, T tokens, V vocabulary.
    """

    model: Any
    seq_len: int = 20
    """T; the longest context that any check makes."""
    seed: int = 0
    """Draws the tokens."""
    pad_id: int = 0
    """Stands at padding; its value must not matter."""
    _truth: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @cached_property
    def ids(self) -> Tensor:
        """Token ids (B, T), uniform over the vocabulary."""
        generator = torch_generator(self.seed, "conformance")
        table: nn.Embedding = self.model.get_input_embeddings()
        shape = (3, self.seq_len)
        ids = torch.randint(1, table.num_embeddings, shape, generator=generator)
        return ids.to(table.weight.device)

    def truth(self, row: int, length: int | None = None) -> Tensor:
        """Logits (T, V) of one row, cut to `length` tokens, run whole and alone."""
        key = (row, self.seq_len if length is None else length)
        if key not in self._truth:
            with torch.no_grad():
                self._truth[key] = self.call(self.ids[row : row + 1, : key[1]]).logits[0].float()
        return self._truth[key]

    @property
    def truths(self) -> Tensor:
        """Logits (B, T, V) of all rows, each run alone."""
        return torch.stack([self.truth(row) for row in range(len(self.ids))])

    @cached_property
    def arguments(self) -> frozenset[str]:
        """Names that the model's forward takes, the ones behind `**kwargs` not included."""
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        return frozenset(inspect.signature(model.forward).parameters)

    @cached_property
    def cache_name(self) -> str:
        """The argument that carries the past."""
        for name in _CACHE_NAMES:
            if name in self.arguments:
                return name
        raise NotApplicable("its forward takes no cache")

    @property
    def keeps_mask(self) -> bool:
        """Whether a token behind the cache still comes with a mask over all tokens."""
        return self.cache_name == "past_key_values"

    @property
    def takes_positions(self) -> bool:
        """Whether forward has an argument for positions."""
        return "position_ids" in self.arguments

    def call(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
        use_cache: bool = False,
    ) -> Any:
        """The model's output; arguments that it does not know are left out."""
        options: dict[str, Any] = {"use_cache": use_cache, "return_dict": True}
        if mask is not None:
            options["attention_mask"] = mask
        if positions is not None and self.takes_positions:
            options["position_ids"] = positions
        if cache is not None:
            options[self.cache_name] = cache
        return self.model(input_ids=ids, **options)

    def empty_cache(self) -> Any:
        """What to give the first piece: None, or a cache if the model fills one and returns none.

        Raises:
            NotApplicable: it does neither.
        """
        if self._returns_cache:
            return None
        if self.cache_name != "past_key_values":
            raise NotApplicable("it returns no cache")
        return DynamicCache(config=self.model.config)

    @cached_property
    def _returns_cache(self) -> bool:
        output = self.call(self.ids[:1, :2], use_cache=True)
        return getattr(output, self.cache_name, None) is not None

    def piece(
        self,
        cache: Any,
        ids: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Logits (B, t, V) of ids behind a cache, and the cache after them."""
        output = self.call(ids, mask, positions, cache, use_cache=True)
        after = getattr(output, self.cache_name, None)
        return output.logits.float(), cache if after is None else after

    def reordered(self, cache: Any, order: Tensor) -> Any:
        """The cache of rows `order` (B,), as beam search asks for it.

        Raises:
            NotApplicable: beam search refuses such a cache.
        """
        if hasattr(self.model, "_reorder_cache"):
            return self.model._reorder_cache(cache, order)
        if not hasattr(cache, "reorder_cache"):
            raise NotApplicable("its cache cannot be reordered, so beam search with it is refused")
        cache.reorder_cache(order)
        return cache

    def in_pieces(
        self,
        rows: slice,
        cuts: list[int],
        with_positions: bool,
        between: Callable[[], object] = lambda: None,
    ) -> Tensor:
        """Logits (rows, T, V) of rows fed in pieces, each behind the cache of the others.

        Args:
            rows: which.
            cuts: where the pieces end, the last one at T.
            with_positions: give absolute positions; else the model counts by itself.
            between: called behind each piece.
        """
        cache, outputs, start = self.empty_cache(), [], 0
        for end in cuts:
            positions = torch.arange(start, end, device=self.ids.device)[None]
            given = positions if with_positions else None
            logits, cache = self.piece(cache, self.ids[rows, start:end], positions=given)
            outputs.append(logits)
            start = end
            between()
        return torch.cat(outputs, dim=1)


def relative_error(found: Tensor, truth: Tensor) -> float:
    """Largest difference over the largest true value; infinite if something is not finite."""
    if found.shape != truth.shape or not torch.isfinite(found).all():
        return float("inf")
    return ((found - truth).abs().max() / truth.abs().max().clamp(min=1e-12)).item()
