"""What changes of a recipe would save: of each ladder the mildest rung that fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from manticore.cli.plan_ladders import Change, ladders
from manticore.evaluation.memory_plan import Memory, Stage


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A change and the memory that the run needs after it."""

    change: Change
    total: int
    """Bytes of the largest stage."""


def measure_changes(
    recipe: Any,
    rebuild: Callable[[Change], list[Stage]],
    measured: dict[str, Memory],
    budget: int | None,
) -> Iterator[Outcome]:
    """Each change by itself, then all that have keys together.

    Where evaluations do not fit either, that is mended first and for all: nothing else helps them.

    Args:
        recipe: of any kind.
        rebuild: the stages of the recipe after a change.
        measured: memory of the unchanged stages, by name.
    """
    largest = max(memory.total for memory in measured.values())
    most = Most(measured, rebuild(Change(title="")))

    def total(change: Change) -> int:
        return most(rebuild(change))

    kept: tuple[str, ...] = ()
    limit = largest - 1 if budget is None else budget
    if fewer := _rows_of_evaluations(recipe, rebuild, most, limit):
        kept, largest = fewer.keys, total(fewer)
        yield Outcome(change=fewer, total=largest)
        if budget is not None and largest <= budget:
            return
    useful: list[Change] = []
    for ladder in ladders(recipe):
        joined = [replace(change, keys=(*kept, *change.keys)) for change in ladder]
        outcome = _first_that_fits(joined, total, budget)
        if outcome is not None and outcome.total < 0.99 * largest:
            useful.append(outcome.change)
            yield outcome
    harmless = [change for change in useful if change.keys and not change.is_last_resort]
    if len(harmless) > 1:
        keys = tuple(dict.fromkeys(key for change in harmless for key in change.keys))
        together = Change(title="these together", keys=keys)
        yield Outcome(change=together, total=total(together))


def _rows_of_evaluations(
    recipe: Any, rebuild: Callable[[Change], list[Stage]], most: Most, limit: int
) -> Change | None:
    """So many rows at once that evaluations fit, if they do not and the recipe says how many."""
    before = {name: most.before[name] for name in ("evaluation", "answers") if name in most.before}
    if recipe.kind != "adapt" or max(memory.total for memory in before.values()) <= limit:
        return None
    rows = recipe.evaluate.batch_size
    # Activations and caches grow with the rows: rungs that would hardly fit are not tried.
    room = min((limit - _fixed(m)) / (m.total - _fixed(m)) for m in before.values())
    halves = _halves(rows)
    likely = [half for half in halves if half <= 1.2 * room * rows] or halves[-1:]
    title = "fewer rows at once in evaluations: same numbers; all changes below with it"
    ladder = [Change(title=title, keys=(f"evaluate.batch_size={half}",)) for half in likely]

    def total(change: Change) -> int:
        return most([stage for stage in rebuild(change) if stage.name in before])

    outcome = _first_that_fits(ladder, total, limit)
    return outcome.change if outcome else None


def _fixed(memory: Memory) -> int:
    """Bytes that do not depend on the rows."""
    return memory.weights + memory.gradients + memory.optimizer


class Most:
    """Bytes of the largest stage after a change, with as few measurements as that takes.

    A change adds nothing to a stage, so those that were smaller before are not measured, and none
    is measured twice.
    """

    def __init__(self, before: dict[str, Memory], stages: list[Stage]) -> None:
        self.before = before
        self._known = {(s.name, s.depends): before[s.name].total for s in stages if s.depends}

    def __call__(self, stages: list[Stage]) -> int:
        bounds = {stage.name: self._bound(stage) for stage in stages}
        most = 0
        for stage in sorted(stages, key=lambda stage: bounds[stage.name], reverse=True):
            if bounds[stage.name] <= most:
                break
            most = max(most, self._total(stage))
        return most

    def _bound(self, stage: Stage) -> float:
        known = self._known.get((stage.name, stage.depends))
        before = self.before.get(stage.name)
        return known or (before.total if before else math.inf)

    def _total(self, stage: Stage) -> int:
        key = (stage.name, stage.depends)
        total = self._known.get(key) or stage.measure().total
        if stage.depends:
            self._known[key] = total
        return total


def _first_that_fits(
    ladder: Sequence[Change], total: Callable[[Change], int], budget: int | None
) -> Outcome | None:
    """The mildest rung that fits, or the last that helps; without a budget the first."""
    best = None
    for change in ladder:
        outcome = Outcome(change=change, total=total(change))
        if best is not None and outcome.total >= best.total:
            break
        best = outcome
        if budget is None or best.total <= budget:
            break
    return best


def _halves(rows: int) -> list[int]:
    """Half as many, a quarter, down to one."""
    found = []
    while rows > 1:
        rows //= 2
        found.append(rows)
    return found
