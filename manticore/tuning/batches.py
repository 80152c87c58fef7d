"""Batches of encoded examples: any step can be asked for, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from manticore.seeds import numpy_generator
from manticore.tuning.encoding import IGNORED, Encoded


class ExampleBatches:
    """Batches in the order of a new permutation for each epoch.

    `batch_at(step)` is a pure function of the seed and the step, so a resumed run sees what an
    uninterrupted one would.

    Args:
        rows: encoded examples.
        batch_size: rows in a batch.
        seed: of the permutations.
        pad: token that fills short rows; it is masked.
    """

    def __init__(self, rows: Sequence[Encoded], batch_size: int, seed: int, pad: int) -> None:
        if batch_size < 1 or not rows:
            raise ValueError(f"batch_size={batch_size} of {len(rows)} rows gives no batch.")
        self.rows, self.batch_size, self.seed, self.pad = rows, batch_size, seed, pad
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, int))

    def batch_at(self, step: int) -> dict[str, Any]:
        """Return input_ids, attention_mask (B, T) and labels, (B, T) or for a classifier (B,)."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        return collate([self.rows[self._row(place)] for place in places], self.pad)

    def _row(self, place: int) -> int:
        epoch, number = divmod(place, len(self.rows))
        if self._order[0] != epoch:  # only a cache: it follows from the seed and the epoch
            generator = numpy_generator(self.seed, "examples", epoch)
            self._order = (epoch, generator.permutation(len(self.rows)))
        return int(self._order[1][number])


def collate(rows: Sequence[Encoded], pad: int) -> dict[str, Any]:
    """One batch of rows, padded on the right to the longest."""
    length = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), length), pad, np.int64)
    mask = np.zeros((len(rows), length), np.int64)
    labels = np.full((len(rows), length), IGNORED, np.int64)
    is_classifier = all(len(row.labels) == 1 and not len(row.prompt) for row in rows)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = row.ids
        mask[number, : len(row.ids)] = 1
        if not is_classifier:
            labels[number, : len(row.ids)] = row.labels
    target = np.array([row.labels[0] for row in rows], np.int64) if is_classifier else labels
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(target),
    }
