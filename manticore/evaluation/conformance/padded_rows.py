"""Rows of several lengths in one batch, and how far they are from themselves alone."""

from __future__ import annotations

import torch
from torch import Tensor

from manticore.evaluation.conformance.probe import Probe, relative_error


def lengths_of(probe: Probe) -> list[int]:
    """Lengths of a batch whose rows differ."""
    return [probe.seq_len, probe.seq_len - 7, probe.seq_len - 3]


def pad(
    probe: Probe, lengths: list[int], side: str, width: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and positions (B, width) of rows cut to `lengths` and padded on one side."""
    width = probe.seq_len if width is None else width
    ids = probe.ids.new_full((len(lengths), width), probe.pad_id)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        where = slice(width - length, None) if side == "left" else slice(length)
        ids[row, where], mask[row, where] = probe.ids[row, :length], 1
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def padded_error(probe: Probe, side: str) -> float:
    """How far a batch padded on one side is from its rows alone."""
    lengths = lengths_of(probe)
    ids, mask, positions = pad(probe, lengths, side)
    with torch.no_grad():
        logits = probe.call(ids, mask, positions).logits.float()
    return compare_padded(probe, logits, lengths, side)


def compare_padded(probe: Probe, logits: Tensor, lengths: list[int], side: str) -> float:
    """The same for logits (B, T, V) that are there."""
    errors = []
    for row, length in enumerate(lengths):
        found = logits[row, -length:] if side == "left" else logits[row, :length]
        errors.append(relative_error(found, probe.truth(row, length)))
    return max(errors)
