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
) -> dict[str, dict[str, Any]]:
    """Train every row at every rate of its grid and keep the best.

    Where the best rate lies at the end of a grid of three or more, the grid grows there by the
    same factor, so that a row is not judged at a rate that it merely happened to be given.

    Args:
        train_all: from (row, rate) pairs to results, which hold `id` and `lr`.
        badness: what to minimise.
        extensions: how often grids may grow.

    Returns:
        For each row its best result, with `tried`: rate -> badness.
    """
    grid = {row: sorted(rates) for row, rates in grids.items()}
    results = list(train_all([(row, lr) for row, rates in grid.items() for lr in rates]))
    for _ in range(extensions):
        wider = {row: _widened(rates, _best(row, results, badness)) for row, rates in grid.items()}
        new = [(row, lr) for row, rates in wider.items() for lr in rates if lr not in grid[row]]
        if not new:
            break
        grid = wider
        results += train_all(new)
    return {row: _chosen(row, results, badness) for row in grid}


def _best(
    row: str, results: Sequence[Mapping[str, Any]], badness: Callable[[Mapping[str, Any]], float]
) -> float:
    own = [result for result in results if result["id"] == row]
    return float(min(own, key=badness)["lr"])


def _chosen(
    row: str, results: Sequence[Mapping[str, Any]], badness: Callable[[Mapping[str, Any]], float]
) -> dict[str, Any]:
    own = [result for result in results if result["id"] == row]
    tried = {f"{result['lr']:g}": badness(result) for result in own}
    best: Mapping[str, Any] = min(own, key=badness)
    return {**best, "tried": tried}


def _widened(rates: list[float], best: float) -> list[float]:
    if len(rates) < 3:
        return rates
    if best == rates[0]:
        return [best * rates[0] / rates[1], *rates]
    if best == rates[-1]:
        return [*rates, best * rates[-1] / rates[-2]]
    return rates
