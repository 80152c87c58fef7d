"""Batches: dictionaries of tensors whose first dimension is the row of the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]


def count_scored(batch: Batch) -> int:
    """Count the items that a loss averages over.

    With ``labels``, those that are not -100; where labels have a time axis, the first
    position is left out, since nothing predicts it. Without labels, the rows.
    """
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        return batch_rows(batch)
    scored = labels[:, 1:] if labels.ndim > 1 and not labels.is_floating_point() else labels
    return int((scored != -100).sum())


def batch_rows(batch: Batch) -> int:
    """Return the number of rows; all tensors of the batch must agree on it."""
    rows = {key: value.shape[0] for key, value in batch.items() if _has_rows(value)}
    if len(set(rows.values())) != 1:
        raise ValueError(
            f"The tensors of a batch must have the same number of rows, not {rows or 'none'}."
        )
    return next(iter(rows.values()))


def split_batch(batch: Batch, pieces: int) -> list[Batch]:
    """Cut a batch into pieces along its rows, as even as possible; other values are repeated."""
    rows = batch_rows(batch)
    if pieces > rows:
        raise ValueError(
            f"A batch of {rows} rows cannot be cut into {pieces} pieces (processes times "
            "grad_accumulation). Use larger batches or fewer pieces."
        )
    if pieces == 1:
        return [batch]
    cut = {k: torch.tensor_split(v, pieces) for k, v in batch.items() if _has_rows(v)}
    return [
        {key: cut[key][i] if key in cut else value for key, value in batch.items()}
        for i in range(pieces)
    ]


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on ``device``."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }


def _has_rows(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0
