"""Positions that a mixer counts by itself: how many real tokens came before each one."""

from __future__ import annotations

import torch
from torch import Tensor


def count_positions(x: Tensor, seen: Tensor | None, padding_mask: Tensor | None) -> Tensor:
    """Real tokens before each one, (batch or 1, seq) int64.

    Args:
        x: (batch, seq, width).
        seen: (batch) real tokens of the pieces before; None: none.
        padding_mask: (batch, seq) bool, True where a token is real, or None.
    """
    if padding_mask is None:
        before = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
    else:
        before = (padding_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    return before if seen is None else before + seen.unsqueeze(1)


def seen_after(x: Tensor, seen: Tensor | None, padding_mask: Tensor | None) -> Tensor:
    """Real tokens up to the end of a piece, (batch); arguments as in `count_positions`."""
    if seen is None:
        seen = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    return seen + (x.shape[1] if padding_mask is None else padding_mask.long().sum(dim=1))
