"""Rotary positions whose angles depend on how long the sequence is: `longrope` and `dynamic`.

A `longrope` model (Phi-3) has two sets of angles: one for sequences up to a border, one for longer
ones. transformers chooses by the longest row of a batch, and a cache keeps the angles that its
keys were stored with. Here every row chooses for itself, as if it were alone, and a cache is not
carried over the border. The angles of a `dynamic` model change with every token past its limit,
and its module remembers the longest sequence it ever saw: there it is refused.

Legend: B batch, T time, r rotated channels of a head.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

FIXED_ANGLES = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose angles do not depend on the length."""


def longrope_border(config: PreTrainedConfig) -> int | None:
    """Longest sequence, in tokens, by the first set of angles; None: there is one set."""
    borders = [
        rope["original_max_position_embeddings"]
        for rope in _ropes(config)
        if rope["rope_type"] == "longrope"
    ]
    return min(borders, default=None)


def is_dynamic(config: PreTrainedConfig) -> bool:
    """Whether angles change with every token past `max_position_embeddings`."""
    return any(rope["rope_type"] == "dynamic" for rope in _ropes(config))


def crosses(border: int, position_ids: Tensor) -> bool:
    """Whether rows with a past of their own take the other angles with these new tokens.

    Args:
        border: from `longrope_border`.
        position_ids: (B or 1, T) of the new tokens; the first one tells how long the past is.
    """
    past, length = position_ids.amin(dim=1), position_ids.amax(dim=1) + 1
    return bool(((past > 0) & (past <= border) & (length > border)).any())


class RowRotary:
    """A model's rotary table in which each row has the angles it would have alone."""

    def __init__(self, rotary: Any, border: int) -> None:
        self.rotary, self.border = rotary, border

    def __call__(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, T, r) of these positions (B or 1, T)."""
        is_long = position_ids.amax(dim=1) >= self.border
        if bool((is_long == is_long[0]).all()):
            return self.rotary(hidden, position_ids=position_ids)
        rows = [self.rotary(hidden, position_ids=row[None]) for row in position_ids]
        cosines, sines = zip(*rows, strict=True)
        return torch.cat(cosines), torch.cat(sines)


def _ropes(config: PreTrainedConfig) -> Iterator[dict[str, Any]]:
    """Rotary settings of the model, one for each kind of layer where they differ."""
    # Read past the config's own __getattribute__, which is slow and asked for at every call.
    rope = config.__dict__.get("rope_parameters") or {}
    for part in [rope, *rope.values()]:
        if isinstance(part, dict) and "rope_type" in part:
            yield part
