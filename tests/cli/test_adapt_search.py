"""The verb that searches adapter shapes: a whole run, a second one, a dry run, bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from manticore.cli.main import main
from tests.tuning.tiny_recipes import METHODS, plain_recipe, save_model, sums, write_rows

SEARCH = {
    "budget": 600, "nblocks": [1, 2], "block_ranks": [1, 2], "probe_steps": 1, "candidates": 3,
    "rungs": [1, 2], "finalists": 1,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", sums(40))
    return tmp_path


def write(folder: Path, search: dict[str, Any] | None, rates: tuple[float, ...] = ()) -> list[str]:
    plain = plain_recipe(folder / "model", folder / "rows.jsonl", rates={"rates": list(rates)})
    plain["methods"] = [method for method in METHODS if method["id"] == "lora"]
    plain.pop("goals", None)
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**plain, "search": search}))
    return ["adapt", "search", "tiny.yaml"]


def test_a_search_stays_within_its_budget_and_continues_where_it_was(folder, capsys):
    command = [*write(folder, SEARCH), "--out", "run", "--quiet"]
    assert main(command) == 0
    capsys.readouterr()
    result = json.loads((folder / "run" / "result.json").read_text())
    assert [len(rung["scores"]) for rung in result["history"]] == [3, 2]
    found = [row for row in result["rows"] if row["id"].startswith("search-")]
    assert len(found) == 1
    assert found[0]["parameters"] <= SEARCH["budget"]
    settings = result["finalists"][found[0]["id"]]
    assert settings["parameters"] == found[0]["parameters"]
    assert {row["id"] for row in result["rows"]} == {"lora", found[0]["id"]}
    assert set(result["front"]) == {"parameters", "memory_bytes", "step_seconds"}
    page = (folder / "run" / "report.html").read_text()
    assert page.count("<circle") == 3 * 2
    assert "Screening" in page
    assert "MoReConfig(" in page
    ready = yaml.safe_load((folder / "run" / "winner.yaml").read_text())["methods"]
    assert [one["method"] for one in ready] == ["more"]
    assert set(result["look"]) == set(result["history"][0]["scores"])
    trials = {path: path.stat().st_mtime_ns for path in (folder / "run" / "trials").glob("*.json")}
    (folder / "run" / "result.json").unlink()  # as if it had been killed before the end
    assert main(command) == 0
    assert trials == {p: p.stat().st_mtime_ns for p in (folder / "run" / "trials").glob("*.json")}
    assert json.loads((folder / "run" / "result.json").read_text())["rows"] == result["rows"]


def test_a_rate_that_diverges_is_told_and_every_row_goes_on(folder, capsys):
    command = [*write(folder, SEARCH, rates=(1e-3, 3e-3, 1e6)), "--out", "run", "--quiet"]
    assert main(command) == 0
    result = json.loads((folder / "run" / "result.json").read_text())
    assert all("1e+06" in row["diverged_at"] for row in result["rows"])
    assert all(row["lr"] < 1 for row in result["rows"])
    sentence = f"{result['rows'][0]['label']} diverged at learning rate 1e+06 (step"
    assert sentence in capsys.readouterr().out
    assert sentence in (folder / "run" / "table.md").read_text()


@pytest.mark.parametrize(
    ("search", "rates", "message"),
    [
        (
            {**SEARCH, "rungs": [4]},
            (3e-3, 1e6),
            r"Every shape diverged within 4 steps at learning rate 1e\+06",
        ),
        (
            {**SEARCH, "probe": "short-run", "probe_steps": 3, "probe_lr": 1e30},
            (),
            r"at search.probe_lr=1e\+30: the \w+ at step \d is not finite",
        ),
    ],
)
def test_shapes_of_which_nothing_can_be_learned_are_not_ranked(
    folder, capsys, search, rates, message
):
    assert main([*write(folder, search, rates), "--out", "run", "--quiet"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_dry_run_says_what_would_be_searched(folder, capsys):
    assert main([*write(folder, SEARCH), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "4 shapes for each kind of module within 600 parameters" in said
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (None, "has no section `search`"),
        ({**SEARCH, "budget": 3}, r"1 x 1 on dense alone has 64 parameters"),
        ({**SEARCH, "nblocks": [0]}, "search.nblocks"),
        ({**SEARCH, "targets": ["dens"]}, "ends with 'dens'. Did you mean 'dense'"),
        ({**SEARCH, "keep": 1.5}, "search.keep=1.5"),
        ({**SEARCH, "rungs": [4, 2]}, "every rung is longer"),
        ({**SEARCH, "probe_steps": 0}, "search.probe_steps=0"),
        ({**SEARCH, "probe": "hessian"}, "gradient"),
    ],
)
def test_a_search_that_cannot_be_done_is_refused(folder, capsys, search, message):
    assert main([*write(folder, search), "--out", "run", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert not (folder / "run").exists()
