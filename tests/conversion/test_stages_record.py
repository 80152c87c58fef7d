"""The tables of transfers that are printed are those of the committed records."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from manticore.config import load_recipe
from manticore.config.transfer_recipe import TransferRecipe
from manticore.conversion.context_costs import context_costs
from manticore.conversion.goals import judge
from manticore.conversion.student import is_calibrated
from manticore.conversion.teacher import checked_teacher
from manticore.conversion.threshold import is_due
from manticore.reports.mad_tables import markdown_of
from manticore.reports.transfer import goal_table, transfer_table
from manticore.reports.transfer_costs import cost_tables

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "transfer"
SEEDS = {"prose": [0, 1, 2], "stories": [0, 1, 2], "recall": [0, 1, 2]}
IN_FULL = ["prose", "stories"]


def record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.expected.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize("name", SEEDS)
def test_the_readme_shows_the_records_tables_and_verdicts(name: str) -> None:
    readme = (FOLDER / "README.md").read_text("utf-8")
    found = record(name)
    further = (goal_table(found), *cost_tables(found)) if name in IN_FULL else ()
    for table in (transfer_table(found), *further):
        assert markdown_of(table).strip() in readme
    for goal in found["goals"]:
        assert goal["sentence"] in readme


@pytest.mark.parametrize("name", SEEDS)
def test_a_record_is_of_the_recipe_beside_it(name: str) -> None:
    found = record(name)
    recipe = load_recipe(TransferRecipe, str(FOLDER / f"{name}.yaml"), [])
    assert [row["id"] for row in found["rows"]] == [row.id for row in recipe.rows]
    for row, asked in zip(found["rows"], recipe.rows, strict=True):
        assert row["seeds"] == SEEDS[name]
        steps = round(recipe.train.steps * asked.length)
        scaled = recipe.calibration_rows * is_calibrated(recipe, asked)
        assert row["tokens"] == (steps * recipe.train.batch_size + scaled) * recipe.data.seq_len
        rates = {asked.lr} if asked.lr else set(recipe.rates)
        assert rates <= {float(rate) for rate in row["tried"]}
        best = min(row["tried"], key=row["tried"].get)
        assert float(best) == pytest.approx(row["lr"], rel=1e-4)  # its name has six digits
        for key, values in row["by_seed"].items():
            assert row["mean"][key] == pytest.approx(statistics.fmean(values))
    assert judge(found["rows"], recipe.goals, found["teacher"]["validation"]) == found["goals"]
    assert f"recipes/transfer/{name}.yaml" in found["command"]


def test_the_recorded_costs_are_what_the_formulas_say_of_the_recipe() -> None:
    recipe = load_recipe(TransferRecipe, str(FOLDER / "prose.yaml"), [])
    source, _ = checked_teacher(recipe, FOLDER)
    assert record("prose")["costs"] == context_costs(source, recipe.rows)


def test_the_recorded_thaw_is_what_the_rule_says_of_the_recorded_curve() -> None:
    recipe = load_recipe(TransferRecipe, str(FOLDER / "prose.yaml"), [])
    row = next(row for row in record("prose")["rows"] if row["id"] == "paper-lit")
    every, steps = recipe.validate_every, recipe.train.steps
    assert recipe.freeze.latest is not None
    for curve, at, why in zip(row["curves"], row["unfrozen_at"], row["unfrozen_why"], strict=True):
        losses = [point["loss"] for point in curve[1:]]
        latest = round(recipe.freeze.latest * steps)
        due = [step for step in range(steps) if is_due(losses[: step // every], recipe.freeze)]
        assert at == min([*due, latest])
        assert why == ("threshold" if due and due[0] <= latest else "latest")
