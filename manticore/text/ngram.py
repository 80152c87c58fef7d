"""An n-gram model with back-off: what a neural language model must beat to be worth its name.

Interpolated modified Kneser-Ney (Chen and Goodman 1999, equations 23 and 26):

    p_n(w | h) = max(c_n(h w) - D_n(c), 0) / c_n(h .) + g_n(h) p_{n-1}(w | h')
    g_n(h)     = sum_w D_n(c_n(h w)) / c_n(h .)

h' is h without its oldest token, and p_0 = 1 / vocab_size. c is the count for the highest order
and, for the lower ones, the number of different tokens (or starts of a row) seen before the
n-gram. An unseen h backs off whole: p_n = p_{n-1}.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

FALLBACK_DISCOUNT = 0.75
"""Where the text is too small to estimate discounts (Ney, Essen and Kneser 1994 use such)."""


@dataclass(frozen=True)
class _Order:
    """The n-grams of one order. An n-gram's number is its place among the sorted keys."""

    keys: np.ndarray
    """Sorted int64: number of the first n - 1 tokens (as an n-gram) * vocab_size + last token."""
    seen: np.ndarray
    """(c - D) / c(h .) for each key."""
    backoff: np.ndarray
    """g(h) for each (n-1)-gram; 1 where nothing was seen to follow."""

    def find(self, queries: np.ndarray) -> np.ndarray:
        """Return the number of each key, -1 where it was never seen."""
        places = np.searchsorted(self.keys, queries).clip(max=len(self.keys) - 1)
        return np.where(self.keys[places] == queries, places, -1)


class NGramModel:
    """A normalised n-gram model over token ids, fitted and scored in NumPy.

    Args:
        order: tokens in the longest n-gram: 5 predicts from the 4 before.
    """

    def __init__(self, order: int = 5) -> None:
        if order < 1:
            raise ValueError(f"order={order} is no n-gram. Choose 1 or more.")
        self.order = order
        self.vocab_size = 0
        self._orders: list[_Order] = []

    def fit(self, rows: np.ndarray, vocab_size: int) -> Self:
        """Count the n-grams of `rows`, (rows, seq_len) ids; none reaches across two rows."""
        rows = _checked(rows, vocab_size)
        self.vocab_size = vocab_size
        order = min(self.order, rows.shape[1])
        keys, ids = _number(rows, order, vocab_size)
        self._orders = [
            _order(keys[n], _counts(n, keys, ids), 1 if n == 0 else len(keys[n - 1]), vocab_size)
            for n in range(order)
        ]
        return self

    def nats(self, rows: np.ndarray) -> np.ndarray:
        """Return the nats of every token but the first of each row, (rows, seq_len - 1).

        These are the tokens that a causal language model predicts in the same rows, and the
        context too begins with the row.
        """
        return -np.log(self._probabilities(_checked(rows, self.vocab_size))[:, 1:])

    def nats_per_token(self, rows: np.ndarray) -> float:
        """Return the mean of `nats`."""
        if np.shape(rows)[-1] < 2:
            raise ValueError("Rows of one token hold nothing to predict. Give longer rows.")
        return float(self.nats(rows).mean())

    def probabilities(self, context: np.ndarray) -> np.ndarray:
        """Return the distribution over the next token after `context`, (vocab_size,)."""
        context = np.asarray(context, np.int64).reshape(-1)
        words = np.arange(self.vocab_size)[:, None]
        rows = np.concatenate([np.tile(context, (self.vocab_size, 1)), words], axis=1)
        return self._probabilities(_checked(rows, self.vocab_size))[:, -1]

    @property
    def n_grams(self) -> list[int]:
        """Return the number of different n-grams of each order: the model's size."""
        return [len(order.keys) for order in self._orders]

    def _probabilities(self, rows: np.ndarray) -> np.ndarray:
        if not self._orders:
            raise ValueError("The model knows no text yet. Call `fit` first.")
        result = np.full(rows.shape, 1 / self.vocab_size)  # (N, T), order 0
        before = np.zeros((len(rows), rows.shape[1]), np.int64)  # number of the context of t
        for n, order in enumerate(self._orders):
            words = rows[:, n:]
            # An unseen context, -1, makes a negative key, which is never found.
            found = order.find(before * self.vocab_size + words)
            backoff = np.where(before >= 0, order.backoff[before], 1.0)
            seen = np.where(found >= 0, order.seen[found], 0.0)
            result[:, n:] = seen + backoff * result[:, n:]
            before = found[:, :-1]  # the n-gram that ends at t is the context of t + 1
        return result


def _number(
    rows: np.ndarray, order: int, vocab_size: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return, for each order, the sorted keys and the n-gram number at each place it can end.

    Numbering n-grams through their first n - 1 tokens keeps keys in 64 bits at any order.
    """
    keys, ids = [], []
    before = np.zeros_like(rows)
    for n in range(order):
        found, number = np.unique(before * vocab_size + rows[:, n:], return_inverse=True)
        keys.append(found)
        ids.append(number.reshape(len(rows), -1))  # (N, T - n)
        before = ids[-1][:, :-1]
    return keys, ids


def _counts(n: int, keys: list[np.ndarray], ids: list[np.ndarray]) -> np.ndarray:
    """Return the counts of order n + 1: occurrences for the highest, else distinct histories."""
    if n == len(keys) - 1:
        return np.bincount(ids[n].ravel(), minlength=len(keys[n]))
    # Each different longer n-gram is one history of the n-gram that it ends with.
    suffix = np.zeros(len(keys[n + 1]), np.int64)
    suffix[ids[n + 1]] = ids[n][:, 1:]
    counts = np.bincount(suffix, minlength=len(keys[n]))
    counts[np.unique(ids[n][:, 0])] += 1  # the start of a row is a history too
    return counts


def _order(keys: np.ndarray, counts: np.ndarray, n_contexts: int, vocab_size: int) -> _Order:
    context = keys // vocab_size
    discount = _discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(context, weights=counts, minlength=n_contexts)
    taken = np.bincount(context, weights=discount, minlength=n_contexts)
    backoff = np.divide(taken, total, out=np.ones(n_contexts), where=total > 0)
    return _Order(keys, (counts - discount) / total[context], backoff)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Return the discounts of counts 0, 1, 2 and 3 or more (equation 26)."""
    _, n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=6)[:5].tolist()
    if 0 in (n1, n2, n3, n4):
        return np.array([0.0] + 3 * [FALLBACK_DISCOUNT])
    ratio = n1 / (n1 + 2 * n2)
    discounts = [1 - 2 * ratio * n2 / n1, 2 - 3 * ratio * n3 / n2, 3 - 4 * ratio * n4 / n3]
    # Odd counts of counts can leave the range in which probabilities stay positive.
    return np.array([0.0, *np.clip(discounts, 0.05, [0.95, 1.95, 2.95])])


def _checked(rows: np.ndarray, vocab_size: int) -> np.ndarray:
    rows = np.asarray(rows, np.int64)
    if rows.ndim != 2 or rows.size == 0:
        raise ValueError(f"rows have shape {rows.shape}. Give (rows, seq_len) with at least one.")
    if rows.min() < 0 or rows.max() >= vocab_size > 0:
        raise ValueError(
            f"rows hold tokens from {rows.min()} to {rows.max()}, but vocab_size={vocab_size}. "
            f"Give ids from 0 to {vocab_size - 1}."
        )
    return rows
