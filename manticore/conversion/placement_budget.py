"""What the cache of a layout holds, and which layers fit a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from manticore.conversion.configuration_converted import ConvertedConfig


@dataclass(frozen=True, kw_only=True)
class CacheBudget:
    """What the cache of one sequence may hold."""

    max_bytes: int
    """Keys, values and states of all layers together."""
    context: int
    """Tokens of the sequence."""
    dtype: torch.dtype = torch.bfloat16
    """Of keys and values; recurrent states are float32 at least."""

    def __post_init__(self) -> None:
        if self.max_bytes < 0 or self.context < 1:
            raise ValueError(
                f"max_bytes={self.max_bytes} must be 0 or more, and context={self.context} 1 or "
                "more tokens."
            )


@dataclass(frozen=True)
class LayerBytes:
    """What each layer adds to the cache, kept and converted."""

    kept: tuple[int, ...]
    converted: tuple[int, ...]

    @classmethod
    def of(cls, config: ConvertedConfig, budget: CacheBudget) -> LayerBytes:
        """Read them off a config whose layers are all converted."""
        attention = ["attention"] * config.num_hidden_layers
        configs = [ConvertedConfig(block=config.block, layers=attention), config]
        kept, converted = (
            tuple(s.cache_bytes(budget.context, budget.dtype).total for s in c.layer_shapes())
            for c in configs
        )
        return cls(kept, converted)

    def total(self, attention: Sequence[int]) -> int:
        """With these layers kept."""
        both = enumerate(zip(self.kept, self.converted, strict=True))
        return sum(kept if index in attention else new for index, (kept, new) in both)


def check_budget(sizes: LayerBytes, budget: CacheBudget) -> None:
    """Raise where even the model without any attention exceeds the budget."""
    least = sizes.total(())
    if least > budget.max_bytes:
        raise ValueError(
            f"No layout keeps the cache of {budget.context:,} tokens within {budget.max_bytes:,} "
            f"bytes: with every layer converted it holds {least:,}, and with attention in all "
            f"{sum(sizes.kept):,}. Raise the budget, or choose mixers with smaller states."
        )


def evenly_spaced(n_layers: int, count: int) -> tuple[int, ...]:
    """The middles of `count` equal stretches of the layers."""
    return tuple((2 * i + 1) * n_layers // (2 * count) for i in range(count))


def first_and_middle(n_layers: int) -> tuple[int, ...]:
    """The second layer and the one before the middle: 1 and 11 of 24."""
    return tuple(i for i in dict.fromkeys((1, n_layers // 2 - 1)) if 0 <= i < n_layers)


def fill(order: Sequence[int], sizes: LayerBytes, budget: CacheBudget) -> tuple[int, ...]:
    """Keep layers in this order, passing over those that would not fit any more."""
    kept: list[int] = []
    for index in order:
        if sizes.total([*kept, index]) <= budget.max_bytes:
            kept.append(index)
    return tuple(sorted(kept))
