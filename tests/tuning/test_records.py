"""The tables that are printed are those of the committed records, which shipped recipes made."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from manticore.config import load_recipe
from manticore.config.adapter_recipe import AdaptRecipe
from manticore.reports.adapters import method_table
from manticore.reports.mad_tables import markdown_of
from manticore.tuning.experiment import judge

MORE = Path(__file__).resolve().parents[2] / "recipes" / "more"
NAMES = ("maths", "novels", "sums", "tales")


def record(name: str) -> dict[str, Any]:
    return json.loads((MORE / f"{name}.expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_shows_the_records_table_and_verdicts(name: str) -> None:
    readme = (MORE / "README.md").read_text(encoding="utf-8")
    assert markdown_of(method_table(record(name))).strip() in readme
    for goal in record(name)["goals"]:
        assert goal["sentence"] in readme


@pytest.mark.parametrize("name", NAMES)
def test_a_record_is_of_the_recipe_beside_it_with_three_seeds(name: str) -> None:
    found, recipe = record(name), load_recipe(AdaptRecipe, str(MORE / f"{name}.yaml"), [])
    assert [row["id"] for row in found["rows"]] == [method.id for method in recipe.methods]
    for row, method in zip(found["rows"], recipe.methods, strict=True):
        assert row["seeds"] == [0, 1, 2]
        assert row["settings"] == dict(method.settings)
        assert set(recipe.rates.rates) <= {float(rate) for rate in row["tried"]}
        for key, values in row["by_seed"].items():
            assert row["mean"][key] == pytest.approx(statistics.fmean(values))
            assert row["sd"][key] == pytest.approx(statistics.stdev(values))
    assert found["command"] == f"manticore adapt run recipes/more/{name}.yaml --seeds 0,1,2" + (
        f" --out runs/more/{name}"
    )
    metric = recipe.evaluate.metrics[0]
    assert judge(found["rows"], recipe.goals, metric) == found["goals"]


@pytest.mark.parametrize("name", NAMES)
def test_more_at_a_quarter_has_a_quarter_of_the_adapters_parameters(name: str) -> None:
    counts = {row["id"]: row["parameters"] for row in record(name)["rows"]}
    head = 4 * 128 if name == "novels" else 0  # the new classifier is in every row
    assert counts["more-equal"] == counts["lora-8"]
    assert 4 * (counts["more-quarter"] - head) == counts["lora-8"] - head
    assert counts["more-quarter"] == counts["lora-2"]
