"""A run's folder continues its own run and refuses every other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from manticore.config import dump_yaml
from manticore.config.strict_yaml import parse_yaml
from manticore.runs import RunFolder, differing_keys, environment, folder, write_text

RECIPE = {"kind": "hybrid", "finetune": {"lr": 1e-3, "tag": "1e-3"}, "seeds": [0, 1]}


def test_a_new_folder_holds_recipe_and_environment(tmp_path):
    run = RunFolder(tmp_path / "new" / "run").open(RECIPE)
    assert parse_yaml((run.path / "recipe.yaml").read_text(), "recipe.yaml") == RECIPE
    recorded = json.loads((run.path / "environment.json").read_text())
    assert {"torch", "transformers", "manticore-lm"} <= set(recorded["versions"])


def test_the_same_recipe_continues_where_it_stopped(tmp_path):
    RunFolder(tmp_path).open(RECIPE).finish("search/darts", {"loss": 1.5})
    run = RunFolder(tmp_path).open(RECIPE)
    assert run.is_done("search/darts")
    assert run.record("search/darts") == {"loss": 1.5}
    assert not run.is_done("finetune")
    with pytest.raises(ValueError, match=r"'finetune' .* is not finished"):
        run.record("finetune")


def test_another_recipe_is_refused_and_the_differing_keys_are_named(tmp_path):
    RunFolder(tmp_path).open(RECIPE)
    other = {**RECIPE, "finetune": {"lr": 2e-3, "tag": "1e-3"}}
    with pytest.raises(ValueError, match=r"finetune\.lr \(0\.001, now 0\.002\).*--out"):
        RunFolder(tmp_path).open(other)


def test_overwrite_removes_what_another_recipe_left(tmp_path):
    RunFolder(tmp_path).open(RECIPE).finish("search", {})
    run = RunFolder(tmp_path).open({"kind": "zoo"}, overwrite=True)
    assert not run.is_done("search")
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == {"kind": "zoo"}


def test_overwrite_never_removes_a_folder_that_is_not_a_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not a run's folder: it holds thesis\.tex"):
        RunFolder(tmp_path).open(RECIPE, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.tex"]


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Cannot write there .*--out"):
        RunFolder(tmp_path / "file" / "run").open(RECIPE)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that takes no files")
def test_a_folder_that_takes_no_files_is_named_by_the_file_that_was_meant():
    with pytest.raises(OSError, match=r"Cannot write there .*--out.*'/proc/report\.html'"):
        write_text("/proc/report.html", "x")


def test_metrics_are_appended_and_cut_back_to_a_checkpoint(tmp_path):
    run = RunFolder(tmp_path).open(RECIPE)
    for stage, row, step in [("a", 0, 1), ("b", 0, 1), ("b", 0, 2), ("b", 1, 2), ("b", 0, 3)]:
        run.log({"stage": stage, "row": row, "step": step})
    run.log({"stage": "b", "row": 0, "note": "no step"})
    run.truncate_metrics("b", 1, row=0)
    kept = [(r["stage"], r["row"], r.get("step")) for r in run.metrics()]
    assert kept == [("a", 0, 1), ("b", 0, 1), ("b", 1, 2), ("b", 0, None)]
    run.truncate_metrics("b", 0)
    assert [r["stage"] for r in run.metrics()] == ["a", "b"]


def test_a_line_that_a_crash_cut_off_is_dropped(tmp_path):
    run = RunFolder(tmp_path).open(RECIPE)
    run.log({"step": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert run.metrics() == [{"step": 1}]
    run = RunFolder(tmp_path).open(RECIPE)
    run.log({"step": 2})
    assert run.metrics() == [{"step": 1}, {"step": 2}]


def test_a_changed_environment_is_recorded_beside_the_first(tmp_path, monkeypatch):
    RunFolder(tmp_path).open(RECIPE)
    RunFolder(tmp_path).open(RECIPE)
    assert [p.name for p in tmp_path.glob("environment*")] == ["environment.json"]
    now = {**environment(), "python": "9.9"}
    monkeypatch.setattr(folder, "environment", lambda: now)
    RunFolder(tmp_path).open(RECIPE)
    assert json.loads((tmp_path / "environment-2.json").read_text())["python"] == "9.9"


def test_the_result_is_read_back(tmp_path):
    run = RunFolder(tmp_path).open(RECIPE)
    assert run.result() is None
    run.write_result({"loss": float("inf")})
    assert run.result() == {"loss": "inf"}


def test_a_stage_cannot_be_named_out_of_the_folder(tmp_path):
    with pytest.raises(ValueError, match="cannot name a stage"):
        RunFolder(tmp_path).is_done("../../etc/passwd")


@pytest.mark.parametrize(
    ("earlier", "now", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": [1, 2]}, {"a": [1, 3]}, ["a.1 (2, now 3)"]),
        ({"a": 1}, {}, ["a (was 1, now absent)"]),
        ({}, {"b": None}, ["b (was absent, now None)"]),
        ({"a": float("nan")}, {"a": float("nan")}, []),
        ({"a": {"b": 1}}, {"a": 2}, ["a ({'b': 1}, now 2)"]),
    ],
)
def test_differences_are_named_by_their_keys(earlier, now, expected):
    assert differing_keys(earlier, now) == expected


def test_a_folder_recipe_and_a_dumped_recipe_read_the_same(tmp_path):
    run = RunFolder(tmp_path).open(RECIPE)
    assert parse_yaml((run.path / "recipe.yaml").read_text(), "") == parse_yaml(
        dump_yaml(RECIPE), ""
    )


def test_a_folder_takes_one_process_at_a_time_and_a_killed_one_lets_go(tmp_path):
    hold = (
        "import sys, time; from manticore.runs.folder import RunFolder; "
        "folder = RunFolder(sys.argv[1]).open({'a': 1}); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="Another process is working in"):
            RunFolder(tmp_path / "run").open({"a": 1})
    finally:
        other.kill()
        other.communicate()
    first = RunFolder(tmp_path / "run").open({"a": 1})
    assert RunFolder(tmp_path / "run").open({"a": 1}).path == first.path  # the same process may
