"""A comparison that was killed goes on and ends as one that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from manticore.cli.main import main
from manticore.config.plain import dump_yaml
from tests.tuning.tiny_recipes import METHODS, plain_recipe, recipe_of, save_model, sums, write_rows

ROOT = Path(__file__).resolve().parents[2]

# The seventh loss is that of the third step of the second training; every step has a checkpoint.
KILLED = """
import os, signal, sys
from manticore.tuning import trial
from manticore.cli.main import main

plain, count = trial.tuning_loss, 0

def counting(model, batch):
    global count
    count += 1
    if count == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(model, batch)

trial.tuning_loss = counting
main(sys.argv[1:])
"""


def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", sums(40))
    plain = plain_recipe(tmp_path / "model", rows, methods=METHODS[1:], rates={"rates": []})
    (tmp_path / "tiny.yaml").write_text(dump_yaml(recipe_of(plain)))
    arguments = ["adapt", "run", "tiny.yaml", "--quiet", "--seeds", "3", "--out"]

    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments, "killed"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert killed.returncode == -9, killed.stdout + killed.stderr
    assert not (tmp_path / "killed" / "result.json").exists()
    assert list(tmp_path.glob("killed/rows/lora-*/train/final"))
    assert list(tmp_path.glob("killed/rows/more-*/train"))
    assert not list(tmp_path.glob("killed/rows/more-*/train/final"))

    assert main([*arguments, "killed"]) == 0
    assert main([*arguments, "whole"]) == 0
    runs = ("killed", "whole")
    results = [json.loads((tmp_path / run / "result.json").read_text()) for run in runs]
    for key in ("metrics", "untouched", "goals", "data"):
        assert results[0][key] == results[1][key]
    for ours, wanted in zip(*(result["rows"] for result in results), strict=True):
        for key in ("id", "lr", "by_seed", "mean", "parameters", "tokens", "tried"):
            assert ours[key] == wanted[key]
    for name in ("lora", "more"):
        ours, wanted = (
            load_file(tmp_path / run / "models" / name / "adapter_model.safetensors")
            for run in runs
        )
        assert set(ours) == set(wanted)
        assert all(ours[key].equal(wanted[key]) for key in ours)
    assert _losses(tmp_path / "killed") == _losses(tmp_path / "whole")


def _losses(run: Path) -> dict[str, list[Any]]:
    """Steps and losses that every training has logged."""
    found: dict[str, list[Any]] = {"lora": [], "more": []}
    for path in sorted(run.glob("rows/*/metrics.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            found[record["row"]].append((record.get("step"), record.get("loss")))
    return found


def test_a_finished_run_is_not_done_again_and_another_recipe_is_refused(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", sums(40))
    plain = plain_recipe(
        tmp_path / "model", rows, methods=METHODS[1:2], rates={"rates": []}, goals=[]
    )
    (tmp_path / "tiny.yaml").write_text(dump_yaml(recipe_of(plain)))
    arguments = ["adapt", "run", "tiny.yaml", "--quiet", "--out", "run"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr("manticore.tuning.experiment.train_method", pytest.fail)
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert main([*arguments, "train.steps=5"]) == 2
    assert "train" in capsys.readouterr().err
