"""The printed search is the committed record's, and its sentences follow from its rows."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from manticore.config import load_recipe
from manticore.config.adapter_recipe import AdaptRecipe
from manticore.config.strict_yaml import parse_yaml
from manticore.reports.adapter_search import rung_table, search_markdown, write_search_report
from manticore.reports.adapters import method_table
from manticore.reports.mad_tables import markdown_of
from manticore.tuning.search_findings import front_of, look_notes, notes, winner
from manticore.tuning.shapes import title_of

MORE = Path(__file__).resolve().parents[2] / "recipes" / "more"


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads((MORE / "search.expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def recipe() -> AdaptRecipe:
    return load_recipe(AdaptRecipe, str(MORE / "search.yaml"), [])


def test_the_readme_shows_tables_front_and_sentences_of_the_record(record):
    readme = (MORE / "README.md").read_text(encoding="utf-8")
    assert markdown_of(method_table(record)).strip() in readme
    assert markdown_of(rung_table(record)).strip() in readme
    said, _, code = search_markdown(record).partition("```python")
    fronts = [line for line in said.splitlines() if line.startswith("- ")]
    assert len(fronts) == len(record["front"]) + len(record["notes"])
    for line in fronts:
        assert line in readme
    assert code.strip() in readme


def test_the_record_is_of_the_recipe_with_three_seeds_and_within_its_budget(record, recipe):
    found = list(record["finalists"])
    assert [row["id"] for row in record["rows"]] == [m.id for m in recipe.methods] + found
    for row in record["rows"]:
        assert row["seeds"] == [0, 1, 2]
        assert set(recipe.rates.rates) <= {float(rate) for rate in row["tried"]}
        for key, values in row["by_seed"].items():
            assert row["mean"][key] == pytest.approx(statistics.fmean(values))
            assert row["sd"][key] == pytest.approx(statistics.stdev(values))
        if row["id"] in found:
            assert row["parameters"] == record["finalists"][row["id"]]["parameters"]
            assert row["parameters"] <= record["budget"] == recipe.search.budget


def test_what_the_record_says_follows_from_its_rows(record, recipe):
    rows, by = record["rows"], recipe.rates.by
    is_kept = "search-one-shot" in record["finalists"]
    proposed = title_of({ending: tuple(choice) for ending, choice in record["one_shot"].items()})
    metric = record["metrics"][0]
    assert record["front"] == front_of(rows, metric)
    assert record["winner"] == winner(rows, list(record["finalists"]), by)
    assert record["notes"] == [
        *look_notes(proposed, is_kept, record["look"], record["history"][0], by),
        *notes(rows, metric),
    ]


def test_the_winner_and_the_page_can_be_used(record, tmp_path):
    methods = parse_yaml(record["winner"]["recipe"], "the winner")["methods"]
    plain = {**methods[0], "settings": dict(methods[0]["settings"])}
    assert plain["settings"] == record["winner"]["settings"]
    write_search_report(MORE / "search.expected.json", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<circle") == len(record["front"]) * len(record["rows"])
