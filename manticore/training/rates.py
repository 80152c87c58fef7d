"""The same search for a learning rate for every row of a comparison.

A rate at which the loss stops being a number is the worst of its row, and its trial is finished:
training it again would end there again. A row fails only when all its rates do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manticore.training.state import NonFiniteLossError

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
    same factor, so that a row is not judged at a rate that it merely happened to be given. Of two
    rates the best is always at an end: they are a choice of the caller and tried as they are.

    Args:
        train_all: from (row, rate) pairs to results, which hold `id` and `lr`, and the entry of
            `diverged` where it applies.
        badness: what to minimise; infinite where the loss is no number.
        extensions: how often grids may grow.
        shown: what to say of a result in `tried`; default its badness.

    Returns:
        For each row its best result, with `tried` (rate -> what is shown of it) and `diverged_at`
        (rate -> step).

    Raises:
        ValueError: no rate of a row gave a finite loss.
    """
    grid = {row: sorted(rates) for row, rates in grids.items()}
    results = list(train_all([(row, lr) for row, rates in grid.items() for lr in rates]))
    for _ in range(extensions):
        wider = {
            row: _widened(rates, min(_of(row, results), key=badness)["lr"])
            for row, rates in grid.items()
        }
        new = [(row, lr) for row, rates in wider.items() for lr in rates if lr not in grid[row]]
        if not new:
            break
        grid = wider
        results += train_all(new)
    return {row: _chosen(row, results, badness, shown or badness) for row in grid}


def finite_or_worst(value: float | str) -> float:
    """A measure to minimise; what is not a number is worse than any other."""
    number = float(value)  # records spell numbers that JSON lacks as words
    return number if math.isfinite(number) else math.inf


def diverged(error: NonFiniteLossError) -> dict[str, Any]:
    """What the result of a trial says of it, beside measures that are NaN."""
    return {"diverged": {"step": error.step, "why": str(error)}}


def check_converged(results: Iterable[Mapping[str, Any]]) -> None:
    """Raise if a training at a chosen rate diverged, as another seed may."""
    for result in results:
        if "diverged" in result:
            raise ValueError(
                f"{result['id']} was best at learning rate {result['lr']:g}, but diverged there "
                f"with seed {result['seed']}. Leave that rate out of its grid. "
                f"{result['diverged']['why']}"
            )


def divergences(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence for each row that diverged at some rate, for a report."""
    return [
        f"{row['label']} diverged at learning rate "
        + ", ".join(f"{rate} (step {step})" for rate, step in row["diverged_at"].items())
        + "."
        for row in rows
        if row.get("diverged_at")
    ]


def _chosen(
    row: str,
    results: Sequence[Mapping[str, Any]],
    badness: Callable[[Mapping[str, Any]], float],
    say: Callable[[Mapping[str, Any]], Any],
) -> dict[str, Any]:
    own = _of(row, results)
    best = min(own, key=badness)
    if math.isinf(badness(best)):
        tried = ", ".join(f"{one['lr']:g}" for one in own)
        why = best.get("diverged", {}).get("why", "Its validation measure is not finite.")
        raise ValueError(
            f"{row} diverged at every learning rate that was tried ({tried}). Give it lower rates. "
            f"At {best['lr']:g}: {why}"
        )
    return {
        **best,
        "tried": {f"{one['lr']:g}": say(one) for one in own},
        "diverged_at": {f"{o['lr']:g}": o["diverged"]["step"] for o in own if "diverged" in o},
    }


def _of(row: str, results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A row's results by rate, so that of equal ones the lowest rate counts as best."""
    return sorted((one for one in results if one["id"] == row), key=lambda one: float(one["lr"]))


def _widened(rates: list[float], best: float) -> list[float]:
    if len(rates) < 3:
        return rates
    if best == rates[0]:
        return [best * rates[0] / rates[1], *rates]
    if best == rates[-1]:
        return [*rates, best * rates[-1] / rates[-2]]
    return rates
