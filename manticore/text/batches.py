"""Training batches: any step can be asked for, and a mixture of kinds comes out exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from manticore.seeds import numpy_generator
from manticore.text.packing import PackedText, as_batch

if TYPE_CHECKING:
    import torch

FINEST = 1000
"""Weights are taken as counts out of at most this many rows."""


class BatchSource:
    """Batches of several kinds of text in fixed proportions.

    `batch_at(step)` is a pure function of the seed and the step, so a resumed run sees what an
    uninterrupted one would. Within a kind, each epoch is a new permutation of its rows.

    Args:
        packs: packed text of each kind, all with the same seq_len.
        weights: share of the rows for each kind, in any unit; equal shares by default.
        batch_size: rows in a batch.
        seed: of the permutations.
    """

    def __init__(
        self,
        packs: Mapping[str, PackedText],
        weights: Mapping[str, float] | None,
        batch_size: int,
        seed: int,
    ) -> None:
        weights = dict.fromkeys(packs, 1.0) if weights is None else dict(weights)
        _check(packs, weights, batch_size)
        self.packs = {kind: pack for kind, pack in packs.items() if weights[kind] > 0}
        self.kinds = list(self.packs)
        self.batch_size = batch_size
        self.seed = seed
        self._pattern = _pattern([weights[kind] for kind in self.kinds])
        # Rows of each kind before each place of the pattern: (period + 1, K)
        hits = self._pattern[:, None] == np.arange(len(self.kinds))
        self._before = np.concatenate([np.zeros((1, len(self.kinds)), int), hits.cumsum(axis=0)])
        self._bytes = {kind: pack.row_bytes for kind, pack in self.packs.items()}
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    @property
    def seq_len(self) -> int:
        """Return the length of a row in tokens."""
        return self.packs[self.kinds[0]].seq_len

    @property
    def tokens_per_batch(self) -> int:
        """Return the number of tokens in a batch."""
        return self.batch_size * self.seq_len

    def rows_at(self, step: int) -> list[tuple[int, int]]:
        """Return (index of the kind, number of the row in its pack) for each row of a batch."""
        if step < 0:
            raise ValueError(f"step={step} is negative. Steps count from 0.")
        rows = []
        for place in range(step * self.batch_size, (step + 1) * self.batch_size):
            rounds, rest = divmod(place, len(self._pattern))
            kind = int(self._pattern[rest])
            drawn = rounds * self._before[-1, kind] + self._before[rest, kind]
            rows.append((kind, self._row(self.kinds[kind], int(drawn))))
        return rows

    def batch_at(self, step: int) -> dict[str, torch.Tensor]:
        """Return the batch of a step.

        Returns:
            `input_ids` and `labels` (batch, seq); `kinds` (batch,), an index into `self.kinds`;
            `bytes` (batch,), the bytes of text that each row predicts. All int64.
        """
        import torch

        chosen = self.rows_at(step)
        rows = np.stack([self.packs[self.kinds[kind]].rows[row] for kind, row in chosen])
        row_bytes = [self._bytes[self.kinds[kind]][row] for kind, row in chosen]
        return {
            **as_batch(rows, row_bytes),
            "kinds": torch.tensor([kind for kind, _ in chosen], dtype=torch.long),
        }

    def epochs_at(self, step: int) -> dict[str, float]:
        """Return how often each kind's rows have been seen before a step."""
        rounds, rest = divmod(step * self.batch_size, len(self._pattern))
        drawn = rounds * self._before[-1] + self._before[rest]
        return {k: float(n / self.packs[k].n_rows) for k, n in zip(self.kinds, drawn, strict=True)}

    def _row(self, kind: str, drawn: int) -> int:
        """Return the row that is drawn after `drawn` others of its kind."""
        epoch, place = divmod(drawn, self.packs[kind].n_rows)
        # Only a cache: the order follows from the seed, the kind and the epoch.
        if self._orders.get(kind, (-1,))[0] != epoch:
            generator = numpy_generator(self.seed, "batches", kind, epoch)
            self._orders[kind] = (epoch, generator.permutation(self.packs[kind].n_rows))
        return int(self._orders[kind][1][place])


def _pattern(weights: list[float]) -> np.ndarray:
    """Return the shortest sequence of kinds in proportion to the weights, spread evenly.

    Repeating it allots every batch, whatever its size, with an error of about a row per kind
    that never adds up.
    """
    counts = _counts(np.array(weights) / math.fsum(weights))
    period = int(counts.sum())
    given = np.zeros(len(counts))
    pattern = []
    for place in range(period):
        owed = (place + 1) * counts / period - given
        # Never more than its count, so the pattern closes exactly.
        kind = int(np.argmax(np.where(given < counts, owed, -np.inf)))
        given[kind] += 1
        pattern.append(kind)
    return np.array(pattern)


def _counts(shares: np.ndarray) -> np.ndarray:
    """Return the smallest whole numbers in these shares, or the nearest out of `FINEST`."""
    for period in range(1, FINEST + 1):
        counts = np.rint(shares * period)
        if np.abs(shares * period - counts).max() < 1e-9 * period:
            return counts.astype(int)
    counts = np.floor(shares * FINEST)
    largest = np.argsort(counts - shares * FINEST, kind="stable")
    counts[largest[: FINEST - int(counts.sum())]] += 1
    return counts.astype(int)


def _check(packs: Mapping[str, PackedText], weights: Mapping[str, float], batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is no batch. Choose 1 or more.")
    if not packs:
        raise ValueError("There is no text to draw batches from. Give at least one kind.")
    if set(weights) != set(packs):
        raise ValueError(
            f"weights are given for {sorted(weights)}, text for {sorted(packs)}. "
            f"Give one weight for each kind."
        )
    total = sum(weights.values())
    if not all(w >= 0 and math.isfinite(w) for w in weights.values()) or total <= 0:
        raise ValueError(f"weights={dict(weights)} must be 0 or more, and not all 0.")
    small = [kind for kind, weight in weights.items() if 0 < weight < total / FINEST]
    if small:
        raise ValueError(
            f"The weight of {', '.join(small)} is less than 1/{FINEST} of all. "
            f"Set it to 0 or to {total / FINEST:g} or more."
        )
    lengths = {kind: pack.seq_len for kind, pack in packs.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The rows differ in length: {lengths}. Pack all with one seq_len.")
