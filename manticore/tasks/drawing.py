"""Random draws for many rows at once.

Legend: R rows, N size of what is drawn from.
"""

from __future__ import annotations

import numpy as np


def draw_distinct(
    rng: np.random.Generator, shape: tuple[int, ...], count: int, size: int
) -> np.ndarray:
    """Draw ordered tuples of different numbers below `size`, all tuples equally likely.

    Returns:
        (*shape, count) int64.
    """
    picks = np.empty((count, *shape), dtype=np.int64)
    for i in range(count):
        # One of the size - i numbers that are left, then past each smaller one that is taken.
        pick = rng.integers(size - i, size=shape)
        for taken in np.sort(picks[:i], axis=0):
            pick += pick >= taken
        picks[i] = pick
    return np.moveaxis(picks, 0, -1)


def draw_subset(rng: np.random.Generator, rows: int, count: int, size: int) -> np.ndarray:
    """Draw sets of `count` numbers below `size`, all sets equally likely (Floyd's algorithm).

    Returns:
        (rows, count) int64, ascending.
    """
    taken = np.zeros((rows, size), dtype=bool)
    every = np.arange(rows)
    for last in range(size - count, size):
        pick = rng.integers(last + 1, size=rows)
        taken[every, np.where(taken[every, pick], last, pick)] = True
    return np.nonzero(taken)[1].reshape(rows, count)


def choose_true(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """Choose one of the True entries of each row, all equally likely; 0 where there is none.

    Args:
        mask: (R, N) bool.

    Returns:
        (R,) int64.
    """
    ranks = np.cumsum(mask, axis=1, dtype=np.int32)
    wanted = rng.integers(np.maximum(ranks[:, -1], 1)) + 1
    return np.argmax(ranks == wanted[:, None], axis=1)


def draw_noise_slots(
    rng: np.random.Generator, rows: int, slots: int, frac_noise: float, protected: int
) -> np.ndarray:
    """Draw which slots hold noise, each with probability `frac_noise`, but one that is protected.

    Args:
        protected: the protected slot is uniform below this; past `slots`, none of them is.

    Returns:
        (rows, slots) bool.
    """
    if frac_noise == 0:
        return np.zeros((rows, slots), dtype=bool)
    noise = rng.random((rows, slots), dtype=np.float32) < frac_noise
    spared = rng.integers(protected, size=rows)
    return noise & (np.arange(slots) != spared[:, None])
