"""Sweeps: every trial once, whatever happens to the others."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manticore.training import Trial, TrialError, run_trials

# Importable by name in a spawned process, whatever name pytest gave this module.
SQUARE = "tests.training.test_pool:square"
TOLD = {"threads": "OMP_NUM_THREADS", "mmap": "MALLOC_MMAP_THRESHOLD_"}


def square(settings: dict[str, Any]) -> dict[str, Any]:
    if settings.get("trace"):
        with open(settings["trace"], "a") as file:
            file.write(f"{settings['x']} {os.getpid()}\n")
    if settings.get("pause"):
        time.sleep(settings["pause"])
    if settings["x"] == 13:
        raise ArithmeticError("thirteen is unlucky")
    if settings["x"] == 66:
        os.kill(os.getpid(), signal.SIGKILL)
    told = {name: os.environ.get(variable) for name, variable in TOLD.items()}
    return {"square": settings["x"] ** 2, "pid": os.getpid(), **told}


def trials(numbers: list[int], **more: Any) -> list[Trial]:
    return [Trial(settings={"x": n, **more}, name=f"n{n}") for n in numbers]


@pytest.mark.parametrize("processes", [1, 2])
def test_records_come_in_order_and_lie_under_their_key(tmp_path: Path, processes: int):
    todo = trials([3, 1, 2])
    records = run_trials(todo, SQUARE, processes=processes, folder=tmp_path)
    assert [r["result"]["square"] for r in records] == [9, 1, 4]
    assert [r["name"] for r in records] == ["n3", "n1", "n2"]
    for trial, record in zip(todo, records, strict=True):
        assert json.loads((tmp_path / f"{trial.key}.json").read_text()) == record
        assert record["settings"] == trial.settings
        assert record["worker"] == SQUARE
        is_here = record["result"]["pid"] == os.getpid()
        assert is_here == (processes == 1)


def test_a_key_is_made_of_values_not_of_order_or_name():
    one = Trial(settings={"a": 1, "b": [2, 3]}, name="x")
    assert one.key == Trial(settings={"b": [2, 3], "a": 1}).key
    assert one.key != Trial(settings={"a": 1, "b": [3, 2]}).key


def test_finished_trials_are_not_run_again(tmp_path: Path):
    trace = str(tmp_path / "trace")
    folder = tmp_path / "sweep"
    run_trials(trials([1, 2], trace=trace), SQUARE, folder=folder)
    run_trials(trials([2, 1, 4, 4], trace=trace), SQUARE, folder=folder)
    assert [line.split()[0] for line in Path(trace).read_text().splitlines()] == ["1", "2", "4"]


@pytest.mark.parametrize("processes", [1, 2])
def test_one_failing_trial_is_reported_after_the_others_are_done(tmp_path: Path, processes: int):
    with pytest.raises(TrialError, match="1 of 4 trials failed") as raised:
        run_trials(trials([1, 13, 2, 3]), SQUARE, processes=processes, folder=tmp_path)
    assert '"x": 13' in str(raised.value)
    assert "thirteen is unlucky" in str(raised.value)
    assert [t.settings["x"] for t, _ in raised.value.failures] == [13]
    assert len(list(tmp_path.glob("*.json"))) == 3
    assert len(list(tmp_path.glob("*.error.txt"))) == 1


def test_a_worker_that_is_killed_costs_only_its_trial(tmp_path: Path):
    with pytest.raises(TrialError, match="1 of 5 trials failed") as raised:
        run_trials(trials([66, 1, 2, 3, 4]), SQUARE, processes=2, folder=tmp_path)
    assert "exit code -9" in str(raised.value)
    assert len(list(tmp_path.glob("*.json"))) == 4


def test_threads_are_divided_among_the_workers(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    records = run_trials(trials([1, 2]), SQUARE, processes=2, folder=tmp_path)
    assert {r["result"]["threads"] for r in records} == {"2"}
    assert os.environ["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize("given", [None, "1000000"])
def test_workers_keep_large_blocks_unless_they_are_told_otherwise(
    tmp_path: Path, monkeypatch, given: str | None
):
    monkeypatch.delenv(TOLD["mmap"], raising=False)
    if given is not None:
        monkeypatch.setenv(TOLD["mmap"], given)
    records = run_trials(trials([1, 2]), SQUARE, processes=2, folder=tmp_path)
    assert {r["result"]["mmap"] for r in records} == {given or str(1 << 32)}
    assert os.environ.get(TOLD["mmap"]) == given


def test_a_killed_sweep_resumes(tmp_path: Path, run_python):
    """The parent is killed with SIGKILL once two of six trials are recorded."""
    folder, trace = tmp_path / "sweep", tmp_path / "trace"
    script = tmp_path / "sweep.py"
    script.write_text(
        "import sys\n"
        "from manticore.training import run_trials\n"
        "from tests.training.test_pool import SQUARE, trials\n"
        "if __name__ == '__main__':\n"
        "    todo = trials([1, 2, 3, 4, 5, 6], trace=sys.argv[2], pause=0.2)\n"
        "    import os, signal, threading, time, pathlib\n"
        "    def watch():\n"
        "        while len(list(pathlib.Path(sys.argv[1]).glob('*.json'))) < 2:\n"
        "            time.sleep(0.01)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    threading.Thread(target=watch, daemon=True).start()\n"
        "    run_trials(todo, SQUARE, processes=2, folder=sys.argv[1])\n"
    )
    done = run_python(str(script), str(folder), str(trace), check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    recorded = {json.loads(p.read_text())["settings"]["x"] for p in folder.glob("*.json")}
    assert 2 <= len(recorded) < 6
    time.sleep(0.5)  # orphaned workers finish their trial, find the line dead and leave
    before = trace.read_text()
    todo = trials([1, 2, 3, 4, 5, 6], trace=str(trace), pause=0.2)
    records = run_trials(todo, SQUARE, processes=2, folder=folder)
    assert [r["result"]["square"] for r in records] == [1, 4, 9, 16, 25, 36]
    rerun = {int(line.split()[0]) for line in trace.read_text()[len(before) :].splitlines()}
    assert rerun == {1, 2, 3, 4, 5, 6} - recorded


@pytest.fixture
def keyboard() -> Iterator[None]:
    """Ctrl-C works, also where a shell started the tests in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("keyboard")
def test_ctrl_c_ends_the_workers(tmp_path: Path):
    main = threading.main_thread().ident
    assert main is not None
    trace = tmp_path / "trace"

    def interrupt() -> None:
        while not trace.exists():  # workers start slowly on a busy machine
            time.sleep(0.1)
        signal.pthread_kill(main, signal.SIGINT)

    finger = threading.Thread(target=interrupt, daemon=True)
    finger.start()
    with pytest.raises(KeyboardInterrupt):
        run_trials(
            trials([1, 2], trace=str(trace), pause=30),
            SQUARE,
            processes=2,
            folder=tmp_path / "sweep",
        )
    finger.join()
    pids = [int(line.split()[1]) for line in trace.read_text().splitlines()]
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_that_cannot_be_imported_elsewhere_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="top level of an importable module"):
        run_trials(trials([1]), lambda settings: {}, folder=tmp_path)
    with pytest.raises(ValueError, match=r"package\.module:function"):
        run_trials(trials([1]), "square", folder=tmp_path)


def test_a_missing_worker_module_is_named(tmp_path: Path):
    with pytest.raises(TrialError, match="no_such_module"):
        run_trials(trials([1]), "no_such_module:go", processes=2, folder=tmp_path)


def test_a_folder_of_another_sweep_is_refused(tmp_path: Path):
    run_trials(trials([1]), SQUARE, folder=tmp_path)
    with pytest.raises(ValueError, match=r"holds trials of tests.training.test_pool:square"):
        run_trials(trials([1]), "tests.training.test_pool:trials", folder=tmp_path)


def test_the_parent_of_a_sweep_starts_without_torch(run_python):
    code = "import sys, manticore.training.pool; print('torch' in sys.modules)"
    assert run_python("-c", code).stdout.strip() == "False"
    assert sys.modules
