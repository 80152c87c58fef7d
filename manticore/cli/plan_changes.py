"""What to change in a recipe so that it needs less memory, the most useful first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from manticore.config.transfer_recipe import StudentAdapterConfig
from manticore.evaluation.memory_plan import Memory, Stage


@dataclass(frozen=True, kw_only=True)
class Change:
    """One way to need less memory."""

    title: str
    """What it does, and what it costs."""
    keys: tuple[str, ...] = ()
    """The same as key=value of the recipe."""
    adapters: bool = False
    """Train adapters instead of all weights."""
    is_last_resort: bool = False
    """It changes what is learned from, so it does not join the others."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A change and the memory that the run needs after it."""

    change: Change
    total: int
    """Bytes of the largest stage."""


SECTIONS = {"pretrain": "train", "hybrid": "finetune", "adapt": "train", "transfer": "train"}
"""Where a kind of recipe says how it trains."""


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


def ladders(recipe: Any) -> Iterator[list[Change]]:
    """Ways to need less, in order of usefulness, each as rungs from mild to strong."""
    section = SECTIONS[recipe.kind]
    training = getattr(recipe, section)
    yield [
        Change(
            title=f"each batch of {training.batch_size} in {pieces} pieces: same numbers, slower",
            keys=(f"{section}.grad_accumulation={pieces}",),
        )
        for pieces in _pieces(training.batch_size, training.grad_accumulation)
    ]
    if not training.gradient_checkpointing:
        title = "compute layers twice instead of keeping them: same numbers, a third slower"
        yield [Change(title=title, keys=(f"{section}.gradient_checkpointing=true",))]
    if training.precision == "fp32":
        title = "matrix products in bfloat16: faster on a GPU, rounds"
        yield [Change(title=title, keys=(f"{section}.precision=bf16",))]
    if recipe.kind == "adapt" and recipe.model.dtype == "fp32":
        title = "weights in bfloat16 (adapters stay in float32)"
        yield [Change(title=title, keys=("model.dtype=bf16",))]
    if recipe.kind == "hybrid":
        yield from _of_hybrid(recipe)
    if recipe.kind == "adapt" and any(method.method == "full" for method in recipe.methods):
        yield [Change(title="LoRA of rank 8 in place of full fine-tuning", adapters=True)]
    if recipe.kind == "transfer":
        yield from _of_transfer(recipe)
    if recipe.kind == "hybrid":
        title = (
            "LoRA of rank 8 on the hybrid: `manticore adapt run` with its folder as model.path and "
            "targets: [default]"
        )
        yield [Change(title=title, adapters=True)]
    yield from _last_resorts(recipe, section)


def _of_hybrid(recipe: Any) -> Iterator[list[Change]]:
    if recipe.search.method != "none" and recipe.search.train_weights:
        title = "search the mixture of the frozen hybrid"
        yield [Change(title=title, keys=("search.train_weights=false",))]
    blocks = recipe.hybrid.num_blocks
    if blocks > 1 and recipe.hybrid.mixture is None and recipe.hybrid.partition is None:
        title = "fewer blocks, so fewer translators"
        fewer = sorted({blocks // 2, 1}, reverse=True)
        yield [Change(title=title, keys=(f"hybrid.num_blocks={number}",)) for number in fewer]
    if recipe.hybrid.router and recipe.hybrid.mixing == "streams":
        title = "heads weighed alike for all tokens, which sums them in one product"
        yield [Change(title=title, keys=("hybrid.router=false",))]


def _of_transfer(recipe: Any) -> Iterator[list[Change]]:
    title = "fewer rows to scale new mixers on"
    yield [
        Change(title=title, keys=(f"calibration_rows={rows}",))
        for rows in (recipe.calibration_rows // 4, 1)
        if 0 < rows < recipe.calibration_rows
    ]
    if any(_takes_adapter(recipe, row) for row in recipe.rows):
        title = "rows that inherit with adapter: {method: lora} on the inherited matrices"
        yield [Change(title=title, adapters=True)]


def _last_resorts(recipe: Any, section: str) -> Iterator[list[Change]]:
    batch_size, seq_len = getattr(recipe, section).batch_size, recipe.data.seq_len
    if batch_size > 1:
        halved = (f"{section}.batch_size={batch_size // 2}", f"{section}.grad_accumulation=1")
        title = "half as many rows in a batch: other numbers"
        yield [Change(title=title, keys=halved, is_last_resort=True)]
    if seq_len > 2:
        title = "rows of half the length, in evaluations too: other numbers"
        shorter = (f"data.seq_len={seq_len // 2}",)
        yield [Change(title=title, keys=shorter, is_last_resort=True)]


def _halves(rows: int) -> list[int]:
    """Half as many, a quarter, down to one."""
    found = []
    while rows > 1:
        rows //= 2
        found.append(rows)
    return found


def _pieces(batch_size: int, now: int) -> list[int]:
    """Twice as many pieces, four times as many, up to one row each."""
    found = []
    while now < batch_size:
        now = min(2 * now, batch_size)
        found.append(now)
    return found


def with_student_adapters(recipe: Any) -> Any:
    """A transfer recipe whose inherited matrices are trained by LoRA only."""
    lora = StudentAdapterConfig(method="lora", settings={"r": 8})
    rows = tuple(
        replace(row, adapter=lora, freeze=False) if _takes_adapter(recipe, row) else row
        for row in recipe.rows
    )
    return replace(recipe, rows=rows)


def _takes_adapter(recipe: Any, row: Any) -> bool:
    trains = recipe.steps_of(row)[1] > 0
    return trains and row.copy != "scratch" and row.adapter is None


def with_adapters(recipe: Any) -> Any:
    """An adapter recipe whose full fine-tuning has become LoRA."""
    methods = tuple(
        replace(method, method="lora", settings={"r": 8}) if method.method == "full" else method
        for method in recipe.methods
    )
    return replace(recipe, methods=methods)
