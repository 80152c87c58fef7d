"""What distinguishes one family of Hugging Face models from another: names of parts, and habits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from manticore.models.fast_paths import has_stock_scan


class RefusedError(ValueError):
    """What a component could only do wrongly, and therefore does not do."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Names and habits of one `model_type`."""

    model_type: str
    """The key in Hugging Face's configs."""
    layers: str
    """Attribute of the base model that holds the list of layers."""
    final_norm: str
    """Attribute of the norm after the last layer."""
    inner: str | None = None
    """Attribute of transformers' base model that holds everything above (OPT's decoder)."""
    position_table: str | None = None
    """Attribute of the learned position table, added once at the entry; None: no table."""
    position_argument: str | None = None
    """Argument by which that table takes positions; None: its only one."""
    position_offset: int = 0
    """Rows of that table before the row of position 0."""
    head_bias: bool = False
    """Whether every language model head of the family has a bias; see `has_head_bias`."""
    entry_dropout: str | None = None
    """Attribute of the dropout on the embeddings, applied once at the entry."""
    entry_dropout_rate: str | None = None
    """Attribute of the rate of that dropout, where it is a function and no module."""
    layer_cache: str | None = None
    """Argument by which a layer takes the cache; None: `token_step` leaves the family alone."""
    has_table_of_angles: bool = False
    """Whether layers look their rotary angles up, in a table that a sequence can outgrow."""
    rotary: str | None = None
    """Attribute of the module that makes the rotary table; None: no rotary positions."""
    entry_multiplier: str | None = None
    """Attribute of the base model by which it scales its embeddings; None: it does not."""
    restarts_state: bool = False
    """Whether transformers starts several tokens behind a filled cache at a zero state."""
    float32_logits: bool = False
    """Whether the family's own model casts its logits to float32."""
    is_recurrent: bool = False
    """A state instead of keys and values: takes `cache_params`, no positions, any length."""

    no_cache: str | None = None
    """Why there is no cached decoding and no padding; None: there are both."""
    prepare_view: Callable[[Any], None] | None = None
    """Neutralises what a range of layers would otherwise do to the whole model."""

    own_cache_layers: Callable[[int], list[Any]] | None = None
    """Makes so many empty cache layers; None: transformers' DynamicCache makes them."""

    def has_position_table(self, config: PreTrainedConfig) -> bool:
        """Whether the embeddings of this model get rows of a learned table of positions."""
        # Models built from mixers say which positions they add; the other tables are learned.
        return self.position_table is not None and (
            getattr(config, "positions", "learned") == "learned"
        )

    def positions(self, base: PreTrainedModel, position_ids: Tensor) -> Tensor:
        """Rows of the learned table of positions: (B or 1, T, d)."""
        assert self.position_table is not None
        named = {} if self.position_argument is None else {self.position_argument: position_ids}
        rows: Tensor = getattr(base, self.position_table)(position_ids, **named)
        return rows

    def layer_arguments(
        self, hidden: Tensor, attention_mask: Tensor | None, position_ids: Tensor
    ) -> dict[str, Tensor | None]:
        """Arguments of the base model's forward that differ between the families."""
        if not self.is_recurrent:
            return {"attention_mask": attention_mask, "position_ids": position_ids}
        if self.no_cache is not None:
            if attention_mask is not None and not attention_mask.all():
                raise RefusedError(
                    f"A batch with padding, and {self.no_cache}. Use sequences of one length."
                )
            return {}
        # A recurrent layer masks the tokens it is given now; the past is in its state already.
        if attention_mask is not None:
            attention_mask = attention_mask[:, -hidden.shape[1] :]
        return {"attention_mask": attention_mask}

    def continues_one_by_one(self, base: PreTrainedModel) -> bool:
        """Whether several tokens on a filled cache must be fed one at a time to be exact.

        transformers' Mamba-1 starts the scan of a multi-token input at a zero state, even when the
        cache holds one. The mixers bound by `fast_paths` start at the cached state.
        """
        return self.restarts_state and has_stock_scan(base)

    def logits(self, head: nn.Module, hidden: Tensor) -> Tensor:
        """The head on the final hidden states, as the family's causal model applies it."""
        if not self.float32_logits:
            return head(hidden)
        weight = getattr(head, "weight", None)
        dtype = weight.dtype if weight is not None and weight.is_floating_point() else None
        return head(hidden if dtype is None else hidden.to(dtype)).float()
