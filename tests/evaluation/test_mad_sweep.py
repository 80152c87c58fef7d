"""Sweeps of trial records: each once, whatever is killed, and the same wherever they run."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from manticore.cli.mad_entries import changed_protocol
from manticore.evaluation.mad import load_records, protocol
from manticore.evaluation.mad.entry import entry_of_layers
from manticore.evaluation.mad.executors import check_executor
from manticore.evaluation.mad.plan import plan_trials
from manticore.evaluation.mad.results import ResultsFolder, write_lines
from manticore.evaluation.mad.sweep import run_sweep
from manticore.training.pool import TrialError
from tests.evaluation.mad_toy import TOY, toy_trials

POCKET = protocol("pocket")


def sweep(folder: Path, trials: list[Any], **options: Any) -> list[dict[str, Any]]:
    with ResultsFolder(folder).open(POCKET) as results:
        return run_sweep(trials, results, worker=TOY, progress=False, **options)


def begun(trace: Path) -> list[tuple[int, int]]:
    """(setting, number of points) of every group that a worker began."""
    lines = trace.read_text().splitlines() if trace.exists() else []
    return [(int(line.split()[0]), int(line.split()[1])) for line in lines]


def test_a_group_is_one_job_and_each_of_its_trials_one_record(tmp_path: Path):
    trace = tmp_path / "trace"
    trials = toy_trials([1, 2], trace=str(trace))
    records = sweep(tmp_path / "out", trials)
    assert begun(trace) == [(1, 4), (2, 4)]
    files = sorted((tmp_path / "out" / "trials").iterdir())
    assert sorted(f.stem for f in files) == sorted(t.trial.key for t in trials)
    for trial, record in zip(trials, records, strict=True):
        assert record["key"] == trial.trial.key
        assert record["settings"] == trial.trial.settings
        assert json.loads((tmp_path / "out/trials" / f"{record['key']}.json").read_text()) == record
    assert load_records([tmp_path / "out"]) == sorted(records, key=lambda r: r["key"])


def test_no_group_is_larger_than_the_stack(tmp_path: Path):
    trace = tmp_path / "trace"
    sweep(tmp_path / "out", toy_trials([1], trace=str(trace)), stack=3)
    assert begun(trace) == [(1, 3), (1, 1)]
    with pytest.raises(ValueError, match="at least one trial"):
        sweep(tmp_path / "out", toy_trials([1]), stack=0)


def test_finished_trials_are_not_trained_again(tmp_path: Path):
    trace = tmp_path / "trace"
    few = sweep(tmp_path / "out", toy_trials([1], seeds=1, trace=str(trace)))
    more = sweep(tmp_path / "out", toy_trials([1], seeds=3, trace=str(trace)))
    assert begun(trace) == [(1, 2), (1, 4)]  # the second time, only the two new seeds
    assert [r for r in more if r["settings"]["seed"] == 0] == few
    sweep(tmp_path / "out", toy_trials([1], seeds=3, trace=str(trace)))
    assert len(begun(trace)) == 2


def test_a_diverged_trial_is_a_record(tmp_path: Path):
    records = sweep(tmp_path / "out", toy_trials([1], rates=(0.01, 0.2), seeds=1))
    assert [record["result"]["diverged"] for record in records] == [False, True]
    assert records[1]["result"]["valid"] is None
    assert load_records([tmp_path / "out"])


def test_records_do_not_depend_on_the_number_of_workers(tmp_path: Path):
    trials = toy_trials([1, 2, 3])
    assert sweep(tmp_path / "one", trials) == sweep(tmp_path / "two", trials, processes=2)


def test_a_failing_group_is_reported_after_the_others(tmp_path: Path):
    trials = toy_trials([1, 2, 3], mood={2: "fail"})
    with pytest.raises(TrialError, match=r"4 of 12 trials failed(.|\n)*cannot be trained"):
        sweep(tmp_path / "out", trials)
    assert len(load_records([tmp_path / "out"])) == 8
    assert len(list((tmp_path / "out" / "errors").iterdir())) == 1


def test_a_killed_worker_costs_only_its_group(tmp_path: Path):
    trials = toy_trials([1, 2, 3, 4], mood={2: "kill"})
    with pytest.raises(TrialError, match=r"4 of 16 trials failed(.|\n)*exit code -9"):
        sweep(tmp_path / "out", trials, processes=2)
    assert len(load_records([tmp_path / "out"])) == 12


def test_a_killed_driver_loses_only_what_was_in_flight(tmp_path: Path, run_python):
    trace, out = tmp_path / "trace", tmp_path / "out"
    script = tmp_path / "sweep.py"
    script.write_text(
        "import os, signal, threading, time, pathlib\n"
        "from manticore.evaluation.mad import protocol\n"
        "from manticore.evaluation.mad.results import ResultsFolder\n"
        "from manticore.evaluation.mad.sweep import run_sweep\n"
        "from tests.evaluation.mad_toy import TOY, toy_trials\n"
        f"out, trace = pathlib.Path({str(out)!r}), {str(trace)!r}\n"
        "def watch():\n"
        "    while len(list((out / 'trials').glob('*.json'))) < 4:\n"
        "        time.sleep(0.005)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    threading.Thread(target=watch, daemon=True).start()\n"
        "    moods = dict.fromkeys(range(6), 'slow')\n"
        "    trials = toy_trials(list(range(6)), mood=moods, trace=trace)\n"
        "    with ResultsFolder(out).open(protocol('pocket')) as folder:\n"
        "        run_sweep(trials, folder, worker=TOY, processes=2)\n"
    )
    done = run_python(str(script), check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = {r["key"]: r for r in load_records([out])}
    whole = {r["setting"] for r in before.values()}
    assert 4 <= len(before) < 24
    first = begun(trace)
    time.sleep(0.1)  # the killed driver's workers end by themselves
    moods = dict.fromkeys(range(6), "slow")
    records = sweep(out, toy_trials(list(range(6)), mood=moods, trace=str(trace)), processes=2)
    assert len(records) == 24
    # What was recorded is not touched, and no recorded trial is trained twice.
    assert all(before[r["key"]] == r for r in records if r["key"] in before)
    again = begun(trace)[len(first) :]
    assert sum(points for _, points in again) == 24 - len(before)
    lost = [x for x, _ in first if f"CR x={x}" not in whole]
    assert len(lost) <= 2  # the workers that were busy
    assert not [p for p in out.rglob(".*") if "partial" in p.name]


def test_two_drivers_do_not_write_into_one_folder(tmp_path: Path):
    script = (
        "from manticore.evaluation.mad import protocol\n"
        "from manticore.evaluation.mad.results import ResultsFolder\n"
        f"ResultsFolder({str(tmp_path)!r}).open(protocol('pocket'))\n"
    )
    with ResultsFolder(tmp_path).open(POCKET):
        import subprocess

        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "Another process is working" in done.stderr


def test_a_folder_of_another_version_is_refused_and_left_alone(tmp_path: Path):
    sweep(tmp_path / "out", toy_trials([1]))
    about = json.loads((tmp_path / "out/sweep.json").read_text())
    (tmp_path / "out/sweep.json").write_text(json.dumps({**about, "task_versions": "old"}))
    files = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"another version: task_versions 'old', now"):
        sweep(tmp_path / "out", toy_trials([1, 2]))
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == files


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"it holds thesis.tex"):
        ResultsFolder(tmp_path).open(POCKET)
    with pytest.raises(ValueError, match="no sweep"):
        load_records([tmp_path])


def test_records_survive_packing_into_one_file(tmp_path: Path):
    records = sweep(tmp_path / "out", toy_trials([1, 2], rates=(0.01, 0.2)))
    write_lines(tmp_path / "all.jsonl", records)
    by_key = {r["key"]: r for r in load_records([tmp_path / "out"])}
    assert {r["key"]: r for r in load_records([tmp_path / "all.jsonl"])} == by_key
    assert len(load_records([tmp_path / "out", tmp_path / "all.jsonl"])) == len(records)


def test_records_of_another_schema_are_refused(tmp_path: Path):
    (tmp_path / "all.jsonl").write_text('{"schema": 99}\n')
    with pytest.raises(ValueError, match="schema 99; this version reads schema 1"):
        load_records([tmp_path / "all.jsonl"])


@pytest.mark.parametrize("torn", [b"", b'{"schema": 1', b"\xff\x00", b'{"schema": 1}'])
def test_a_torn_record_is_set_aside_and_trained_again(tmp_path: Path, torn: bytes):
    trials = toy_trials([1, 2])
    before = sweep(tmp_path / "out", trials)
    file = tmp_path / "out/trials" / f"{trials[1].trial.key}.json"
    file.write_bytes(torn)
    with pytest.raises(ValueError, match=f"{file.name} .*run again"):
        load_records([tmp_path / "out"])
    with pytest.warns(UserWarning, match=r"kept as .*\.torn"):
        assert sweep(tmp_path / "out", trials) == before
    assert file.with_suffix(".torn").read_bytes() == torn


def test_a_table_is_no_file_of_records():
    with pytest.raises(ValueError, match=r"savings\.json is no file of records"):
        load_records(["recipes/mad/savings.json"])


def test_files_that_are_torn_are_named(tmp_path: Path):
    sweep(tmp_path / "out", toy_trials([1]))
    (tmp_path / "out/sweep.json").write_text("{")
    with pytest.raises(ValueError, match=r"sweep\.json is not valid JSON"):
        sweep(tmp_path / "out", toy_trials([1]))
    (tmp_path / "all.jsonl").write_text("\nxx\n")
    with pytest.raises(ValueError, match=r"all\.jsonl:2 is not valid JSON"):
        load_records([tmp_path / "all.jsonl"])


def test_the_bar_moves_while_a_group_trains(tmp_path: Path):
    from tqdm import tqdm

    from manticore.evaluation.mad.live_steps import LiveBar, StepNote

    bar = tqdm(total=100.0, initial=20.0, file=io.StringIO())
    with LiveBar(bar, tmp_path / "notes", {"a": 2.0, "b": 1.0}) as live:
        note = StepNote(tmp_path / "notes/a")
        note(5)
        note(5)  # within a second of the first: counted, not yet written
        (tmp_path / "notes/b").write_text("")  # half written
        live.look()
        assert bar.n == 20 + 2 * 5
        note.written = 0.0
        note(10)
        live.look()
        assert bar.n == 20 + 2 * 20
        live.finish("a", 70.0, "1/2 trainings")
        assert bar.n == 90
    assert not (tmp_path / "notes").exists()


def test_a_worker_notes_its_steps_where_it_is_told_to(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("manticore.evaluation.mad.live_steps.EVERY", 0.0)
    noted: list[int] = []
    monkeypatch.setattr(
        "manticore.evaluation.mad.live_steps.StepNote.__call__",
        lambda self, steps: noted.append(steps),
    )
    entry = entry_of_layers(["attention", "rwkv7-channel"], 8)
    few = changed_protocol(POCKET.only(["M"]), {"seq_len": 4, "vocab_size": 8}, steps=3)
    few = dataclasses.replace(few, num_valid=8, num_test=8)
    with ResultsFolder(tmp_path / "out").open(few) as results:
        run_sweep(plan_trials([entry], few, [0, 1]), results)
    assert sum(noted) == 2 * 3
    assert not (tmp_path / "out/.steps").exists()


def test_bad_executors_are_refused_before_any_work(monkeypatch):
    with pytest.raises(ValueError, match="Known: local, ray"):
        check_executor("slurm", 1)
    with pytest.raises(ValueError, match="1 or more"):
        check_executor("local", 0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"manticore-lm\[ray\]"):
        check_executor("ray", 1)


@pytest.mark.slow
def test_ray_and_the_local_pool_make_the_same_records(tmp_path: Path):
    pytest.importorskip("ray")
    trials = toy_trials([1, 2, 3], rates=(0.01, 0.2), mood={3: "fail"})
    for executor in ("local", "ray"):
        with pytest.raises(TrialError, match="4 of 12"):
            sweep(tmp_path / executor, trials, executor=executor, processes=2)
    local, ray = (load_records([tmp_path / name]) for name in ("local", "ray"))
    assert len(local) == 8
    assert ray == local


@pytest.mark.slow
def test_a_worker_that_ray_loses_costs_only_its_group(tmp_path: Path):
    pytest.importorskip("ray")
    with pytest.raises(TrialError, match=r"4 of 8 trials failed(.|\n)*Ray lost the job"):
        sweep(tmp_path / "out", toy_trials([1, 2], mood={1: "kill"}), executor="ray", processes=2)
    assert len(load_records([tmp_path / "out"])) == 4
