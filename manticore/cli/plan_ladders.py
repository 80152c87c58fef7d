"""Ways for a recipe to need less memory, the most useful first, each from mild to strong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from manticore.config.transfer_recipe import StudentAdapterConfig


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


SECTIONS = {"pretrain": "train", "hybrid": "finetune", "adapt": "train", "transfer": "train"}
"""Where a kind of recipe says how it trains."""


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
