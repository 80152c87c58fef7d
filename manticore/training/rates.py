"""The same search for a learning rate for every row of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Wanted = list[tuple[str, float]]
"""Rows and learning rates that are to be trained."""


def choose_rates(
    grids: Mapping[str, Sequence[float]],
    train_all: Callable[[Wanted], Sequence[Mapping[str, Any]]],
    badness: Callable[[Mapping[str, Any]], float],
    extensions: int = 0,
    shown: Callable[[Mapping[str, Any]], Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Train every row at every rate of its grid and keep the best.

    Where the best rate lies at the end of a grid of three or more, the grid grows there by the
    same factor, so that a row is not judged at a rate that it merely happened to be given.

    Args:
        train_all: from (row, rate) pairs to results, which hold `id` and `lr`.
        badness: what to minimise.
        extensions: how often grids may grow.
        shown: what to say of a result in `tried`; default its badness.

    Returns:
        For each row its best result, with `tried`: rate -> what is shown of it.
    """
    grid = {row: sorted(rates) for row, rates in grids.items()}
    results = list(train_all([(row, lr) for row, rates in grid.items() for lr in rates]))
    for _ in range(extensions):
        wider = {
            row: _widened(rates, _best(row, results, badness)["lr"]) for row, rates in grid.items()
        }
        new = [(row, lr) for row, rates in wider.items() for lr in rates if lr not in grid[row]]
        if not new:
            break
        grid = wider
        results += train_all(new)
    say = shown or badness
    return {
        row: {
            **_best(row, results, badness),
            "tried": {f"{one['lr']:g}": say(one) for one in results if one["id"] == row},
        }
        for row in grid
    }


def _best(
    row: str, results: Sequence[Mapping[str, Any]], badness: Callable[[Mapping[str, Any]], float]
) -> Mapping[str, Any]:
    own = [result for result in results if result["id"] == row]
    best: Mapping[str, Any] = min(own, key=badness)
    return best


def _widened(rates: list[float], best: float) -> list[float]:
    if len(rates) < 3:
        return rates
    if best == rates[0]:
        return [best * rates[0] / rates[1], *rates]
    if best == rates[-1]:
        return [*rates, best * rates[-1] / rates[-2]]
    return rates
