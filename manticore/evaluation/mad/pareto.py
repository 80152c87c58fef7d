"""The Pareto front: what nothing else beats in one respect without being worse in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

Key = TypeVar("Key")


def pareto_front(scores: Mapping[Key, float], costs: Mapping[Key, Sequence[float]]) -> list[Key]:
    """The keys that no other key dominates, the highest score first.

    One dominates another if its score is not lower, none of its costs is higher, and one of these
    is strictly better.

    Args:
        scores: higher is better.
        costs: lower is better; as many numbers for each key.
    """
    front = [
        key
        for key in scores
        if not any(_dominates(other, key, scores, costs) for other in scores if other != key)
    ]
    return sorted(front, key=lambda key: -scores[key])


def _dominates(
    a: Key, b: Key, scores: Mapping[Key, float], costs: Mapping[Key, Sequence[float]]
) -> bool:
    better = [scores[a] - scores[b], *(y - x for x, y in zip(costs[a], costs[b], strict=True))]
    return min(better) >= 0 and max(better) > 0
