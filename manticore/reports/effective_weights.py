"""How much each stream of a hybrid reads of every other one, from mixture and loyalty alone."""

import math
from collections.abc import Sequence

Weights = Sequence[float]


def effective_weights(row: Weights, loyalty: float | None) -> list[list[float]]:
    """What each stream reads: [k][j] = softmax_j(log row_j + loyalty [j = k])."""
    strength = 0.0 if loyalty is None else float(loyalty)
    return [_reads(row, k, strength) for k in range(len(row))]


def _reads(row: Weights, k: int, loyalty: float) -> list[float]:
    if math.isinf(loyalty) and row[k] > 0:
        return [float(j == k) for j in range(len(row))]
    # exp(loyalty) would overflow beyond 700; any loyalty beyond 50 is already one-hot.
    boost = math.exp(min(loyalty, 50.0)) if math.isfinite(loyalty) else 1.0
    raw = [weight * (boost if j == k else 1.0) for j, weight in enumerate(row)]
    total = sum(raw)
    return [value / total for value in raw] if total else raw
