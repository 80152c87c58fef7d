"""A student's training as a trial of the pool, and its finished model read back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manticore.config.load import from_plain
from manticore.config.transfer_recipe import StudentConfig, TransferRecipe
from manticore.conversion.modeling_converted import ConvertedForCausalLM
from manticore.conversion.student import Student
from manticore.training import NonFiniteLossError, load_weights
from manticore.training.rates import diverged


def train_student(settings: dict[str, Any]) -> dict[str, Any]:
    """Train one row at one learning rate with one seed; a trial for the pool.

    Args:
        settings: `recipe` and `row` as plain values, `lr`, `seed`, `base` (folder of the recipe)
            and `run`.

    Returns:
        Losses, the curve over tokens, what the stages cost, and where the weights lie; or that
        the loss stopped being a number.
    """
    recipe = from_plain(TransferRecipe, settings["recipe"], source="the trial's recipe")
    row = from_plain(StudentConfig, settings["row"], source="the trial's row")
    student = Student(recipe, row, Path(settings["base"]), settings["lr"], int(settings["seed"]))
    try:
        return student.run(Path(settings["run"]))
    except NonFiniteLossError as error:
        names = {"id": row.id, "lr": student.lr, "seed": student.seed}
        return {**names, "validation": math.nan, **diverged(error)}


def trained_student(
    recipe: TransferRecipe, result: Mapping[str, Any], base: Path, run: Path
) -> ConvertedForCausalLM:
    """The finished model of a trial, its weights read from the folder; adapters are merged."""
    row = next(row for row in recipe.rows if row.id == result["id"])
    student = Student(recipe, row, base, float(result["lr"]), int(result["seed"]))
    model, plan = student.transferred()
    wrapped: Any = model
    if row.adapter is not None:
        wrapped, _ = student.adapted(model, plan)
    stage = "train" if student.steps else "align"
    load_weights(run / result["folder"] / stage / "final", {"model": wrapped})
    if row.adapter is not None:
        model = wrapped.merge_and_unload()
    return model.eval()
