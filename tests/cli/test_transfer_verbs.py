"""The verbs that convert: plans, dry runs, a whole run, a kill in the middle, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from manticore.cli.main import main
from manticore.conversion.modeling_converted import ConvertedForCausalLM
from tests.conversion.students import plain_recipe, teacher_folder

ROWS: list[dict[str, Any]] = [
    {"id": "scratch", "label": "<b>From scratch", "copy": "scratch"},
    {"id": "paper", "label": "The paper", "freeze": True},
    {"id": "kept", "label": "Aligned", "copy": "all", "align": 2, "distil": True, "keep": [1]},
]
GOALS = [
    {"kind": "better-by", "row": "kept", "than": "scratch", "amount": 99.0},
    {"kind": "near-teacher", "row": "kept", "amount": 99.0},
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_folder(tmp_path_factory.mktemp("home"))


@pytest.fixture
def folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def write(folder: Path, name: str = "tiny", **changes: Any) -> list[str]:
    """Write a recipe of seconds; return the command that runs it."""
    plain = {**plain_recipe(ROWS, goals=GOALS), "validate_every": 3, **changes}
    plain["train"] = {**plain["train"], "steps": 6}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(plain))
    return ["transfer", "run", f"{name}.yaml"]


# A whole run


def test_a_run_writes_table_report_and_models(folder: Path, capsys) -> None:
    samples = {"prompts": ["1 plus 2 is"], "max_new_tokens": 3}
    command = write(folder, samples=samples)
    assert main([*command, "--seeds", "0,1", "--out", "run", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "Aligned, before training" in said
    assert "(goal: at least 99): not met" in said

    result = json.loads((folder / "run" / "result.json").read_text())
    assert result["command"] == "manticore transfer run tiny.yaml --seeds 0,1 --out run"
    assert [row["seeds"] for row in result["rows"]] == [[0, 1]] * 3
    assert main([*command, "--dry-run"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "a training: " in line]
    spent = [row["flops"] for row in result["rows"]]
    for place in (0, 2):
        assert f"a training: {spent[place]:.2e} FLOPs" in lines[place]
    assert float(lines[1].split("at most ")[1].split()[0]) > spent[1]  # the threshold saved some
    assert [goal["met"] for goal in result["goals"]] == [False, True]
    # 6 steps of 4 rows of 16 tokens, whatever the stages were, and 2 rows to scale new mixers.
    steps, scaling = 6 * 4 * 16, 2 * 16
    assert [row["tokens"] for row in result["rows"]] == [steps, *[steps + scaling] * 2]
    assert [row["curves"][0][0]["tokens"] for row in result["rows"]] == [0, scaling, scaling]
    scratch, paper, kept = result["rows"]
    # The teacher is fed the text that scales, and that of alignment and distillation.
    told = [row["teacher_flops"] / 16 for row in (scratch, paper, kept)]
    assert told[1] > 0
    assert told == [0, told[1], (2 + 6 * 4) * told[1] / 2]
    assert result["plans"]["kept"]["layers"] == ["retention", "attention"]
    assert {one["row"] for one in result["samples"]} == {"teacher", "scratch", "paper", "kept"}

    table = (folder / "run" / "table.md").read_text()
    assert table.startswith("| student | loss | at start | bits per byte |")
    page = (folder / "run" / "report.html").read_text()
    assert "Cost at context lengths" in page
    assert "&lt;b&gt;From scratch" in page
    assert "<b>From scratch" not in page
    assert "<script" not in page
    for heading in ("The ladder", "Which layers are attention", "Samples beside the teacher"):
        assert heading in page
    assert "layer 1: attention" in page

    model = ConvertedForCausalLM.from_pretrained(folder / "run" / "models" / "kept")
    kinds = [layer["mixer"] for layer in model.config.layers]
    assert kinds == ["retention", "attention"]


def test_what_is_finished_is_not_done_again(folder: Path, monkeypatch, capsys) -> None:
    """Killed inside the second row, the same command goes on with it and keeps the first."""
    from manticore.conversion import experiment

    command = [*write(folder, name="killed", goals=[]), "--out", "killed", "--quiet"]
    trained: list[str] = []
    real = experiment.train_student

    def dying(settings: dict[str, Any]) -> dict[str, Any]:
        trained.append(settings["row"]["id"])
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(settings)

    dying.__module__, dying.__qualname__ = real.__module__, real.__qualname__
    monkeypatch.setattr(experiment, "train_student", dying)
    assert main(command) == 130
    assert main(command) == 0
    assert trained == ["scratch", "paper", "paper", "kept"]
    assert main(command) == 0  # the whole run is there: nothing is trained
    assert len(trained) == 4


def test_a_rate_that_diverges_is_finished_and_told_and_the_others_go_on(
    folder: Path, monkeypatch, capsys
) -> None:
    rows = plain_recipe(ROWS[:1])["rows"]
    command = write(folder, name="steep", goals=[], rows=rows, rates=[3e-3, 1e6])
    assert main([*command, "--out", "steep", "--quiet"]) == 0
    sentence = "From scratch diverged at learning rate 1e+06 (step"
    assert sentence in capsys.readouterr().out
    assert sentence in (folder / "steep" / "table.md").read_text()
    (row,) = json.loads((folder / "steep" / "result.json").read_text())["rows"]
    assert (row["lr"], row["tried"]["1e+06"]) == (3e-3, "inf")

    # Both trials are finished: another report of the same run trains nothing.
    (folder / "steep" / "result.json").unlink()
    monkeypatch.setattr("manticore.conversion.student.Student.run", pytest.fail)
    assert main([*command, "--out", "steep", "--quiet"]) == 0


def test_a_row_that_diverges_at_every_rate_is_told(folder: Path, capsys) -> None:
    rows = plain_recipe(ROWS[:1])["rows"]
    command = write(folder, name="cliff", goals=[], rows=rows, rates=[1e6])
    assert main([*command, "--out", "cliff", "--quiet"]) == 2
    assert "scratch diverged at every learning rate that was tried" in capsys.readouterr().err


# Plans


def test_a_dry_run_tells_plans_and_trainings_and_writes_nothing(folder: Path, capsys) -> None:
    command = write(folder)
    before = sorted(path.name for path in folder.iterdir())
    assert main([*command, "--dry-run", "--seeds", "0,1,2"]) == 0
    said = capsys.readouterr().out
    assert "kept: " in said
    assert "transfer, align 2 steps, train 4 steps (distil)" in said
    assert "transfer, train 6 steps (freeze)" in said
    assert "trainings: 9;" in said  # one rate for each row: no grid that could grow
    for row in ("scratch", "paper", "kept"):
        table = said.split(f"the plan of {row}:")[1].split("the plan of")[0]
        assert "mixer.gate.weight" in table
        assert "lm_head.weight" in table
    assert "would write: runs/tiny/result.json" in said
    assert main([*command, "--dry-run", "data.sources.0.path=nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before


def test_show_lists_every_tensor(folder: Path, capsys) -> None:
    command = ["transfer", "show", "teacher", "--mixer", "retention", "--keep", "1"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "gpt_neox.embed_in.weight" in said
    assert "inherited: " in said
    assert main([*command, "--copy", "all", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["layers"] == ["retention", "attention"]
    rows = [row for row in plan["rows"] if row["target"] and row["how"] != "tied"]
    assert sum(torch.Size(row["shape"]).numel() for row in rows) == plan["parameters"]


# Errors


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows": [{"id": "a", "label": "a", "mixer": "retentoin"}]}, "Row a: Unknown mixer"),
        (
            {"rows": [{"id": "a", "label": "a", "mixer": "retention", "keep": [7]}]},
            "keep names layer 7",
        ),
        (
            {"rows": [{"id": "a", "label": "a", "mixer": "retention", "settings": {"memory": 3}}]},
            "has no setting 'memory'",
        ),
        (
            {
                "rows": [
                    {"id": "a", "label": "a", "mixer": "retention", "adapter": {"method": "lorra"}}
                ]
            },
            "Row a: Unknown method 'lorra'. Did you mean 'lora'",
        ),
        (
            {
                "rows": [
                    {
                        "id": "a",
                        "label": "a",
                        "mixer": "retention",
                        "adapter": {"method": "more", "settings": {"block_rank": 0}},
                    }
                ]
            },
            "Row a: more refuses its settings",
        ),
        ({"teacher": {"path": "./nothing"}}, "nothing"),
        ({"data": {"sources": [{"kind": "maths", "path": "few.txt"}]}}, "No document fell into"),
        ({"wrong": 1}, "wrong"),
    ],
)
def test_bad_recipes_say_what_to_mend(folder: Path, capsys, changes: Any, says: str) -> None:
    (folder / "few.txt").write_text("One plus two is three.")
    command = write(folder, name="bad", goals=[], **changes)
    assert main([*command, "--out", "bad"]) == 2
    assert says in capsys.readouterr().err
    assert not (folder / "bad").exists()


def test_another_tokenizer_than_the_teachers_is_refused(folder: Path, capsys) -> None:
    zoo = Path(__file__).resolve().parents[2] / "recipes" / "zoo"
    command = write(folder, name="other", goals=[])
    assert main([*command, "--out", "other", f"data.tokenizer={zoo / 'stories260k'}"]) == 2
    assert "tokenizer" in capsys.readouterr().err
    assert not (folder / "other").exists()


def test_show_refuses_layers_that_are_no_numbers(folder: Path, capsys) -> None:
    assert main(["transfer", "show", "teacher", "--keep", "one"]) == 2
    assert "--keep one is not a list of layers" in capsys.readouterr().err


# Placement


def test_placements_are_compared_on_one_budget(folder: Path, capsys) -> None:
    command = ["transfer", "place", write(folder, "placed")[-1], "--batches", "1", "--json"]
    both = json.loads(_said([*command, "--budget", "1MB", "--context", "64"], capsys))
    assert both["budget"] == {"max_bytes": 10**6, "context": 64, "dtype": "bfloat16"}
    by_method = {one["method"]: one for one in both["placements"]}
    assert by_method["none"]["attention"] == []
    # With room for all, everything stays and nothing is lost.
    assert by_method["uniform"]["attention"] == [0, 1]
    assert by_method["uniform"]["kl"] == pytest.approx(0.0, abs=1e-6) != by_method["none"]["kl"]
    room = by_method["uniform"]["cache_bytes"] - 1
    tight = json.loads(_said([*command, "--budget", f"{room / 1000}KB", "--context", "64"], capsys))
    assert {len(one["attention"]) for one in tight["placements"]} == {0, 1}
    assert all(one["cache_bytes"] <= room for one in tight["placements"])


def test_a_budget_that_no_layout_meets_says_what_would(folder: Path, capsys) -> None:
    command = [
        "transfer",
        "place",
        write(folder, "placed")[-1],
        "--budget",
        "0.01KB",
        "--context",
        "64",
    ]
    assert main(command) == 2
    assert "with every layer converted it holds" in capsys.readouterr().err


def _said(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(command) == 0
    return capsys.readouterr().out


# The examples of the help


@pytest.mark.parametrize("source", ["neox-prose", "stories260k"])
def test_a_shipped_model_is_found_from_any_folder(source, tmp_path, monkeypatch, capsys) -> None:
    command = ["transfer", "show", f"recipes/zoo/{source}", "--mixer", "retention", "--keep", "0"]
    for folder in (tmp_path, Path(__file__).parents[2]):
        monkeypatch.chdir(folder)
        assert "inherited: " in _said(command, capsys)
    assert main([*command[:3], "--mixer", "nosuch"]) == 2
    assert "Unknown mixer 'nosuch'" in capsys.readouterr().err
    assert main([*command[:3], "--keep", "9"]) == 2
    assert "keep names layer 9" in capsys.readouterr().err
