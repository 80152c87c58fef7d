"""A run that is killed with SIGKILL, again and again, ends exactly where a whole one ends."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from manticore.cli.main import main
from tests.conftest import REPOSITORY
from tests.faults.jobs import partial_files, write_job

STAGES = ("projectors", "search", "finetune", "test")
EXACT = 1e-6  # what is promised; on one machine the numbers are the same to the bit
PATIENCE = 120.0  # seconds for one life of a run on a busy machine
FEW_ROWS = {"component_equal_flops": False, "no_cross_talk": False, "uniform_mixture": False}

linux_only = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")


@linux_only
def test_three_kills_change_nothing(tmp_path: Path, capsys):
    recipe = write_job(tmp_path / "job", compare={**FEW_ROWS, "random_mixture": False})
    plan = [("projectors", 1), ("search", 4), ("finetune", 3)]
    hit = kills(recipe, tmp_path / "killed", plan, seed=0, processes=1)
    assert set(hit) == {"projectors", "search", "finetune"}
    assert_same_as_whole(recipe, tmp_path)


@pytest.mark.slow
@linux_only
def test_ten_kills_change_nothing(tmp_path: Path, capsys):
    recipe = write_job(tmp_path / "job")
    draw = random.Random(5)
    phases = ["projectors"] * 2 + ["search"] * 3 + ["finetune"] * 4 + ["test"]
    # Marks are checkpoints, log lines and records: enough of them fall into one checkpoint
    # interval for the kills to land before, in and after the writing of a checkpoint.
    plan = [(phase, 0 if phase == "test" else draw.randint(1, 3)) for phase in phases]
    hit = kills(recipe, tmp_path / "killed", plan, seed=1, processes=2)
    print("kills hit:", ", ".join(hit))
    assert len(hit) == 10
    assert len(set(hit)) >= 3
    assert_same_as_whole(recipe, tmp_path)


@linux_only
def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path):
    """A worker in the middle of a long trial ends with its parent, not with the trial."""
    script = tmp_path / "sweep.py"
    script.write_text(
        "from manticore.training import Trial, run_trials\n"
        "if __name__ == '__main__':\n"
        "    trials = [Trial(settings={'n': n}) for n in range(2)]\n"
        f"    run_trials(trials, 'tests.faults.sleeper:sleep_long', processes=2,\n"
        f"               folder={str(tmp_path / 'sweep')!r}, progress=False)\n"
    )
    parent = start([str(script)], tmp_path, ready=str(tmp_path))
    try:
        wait_until(lambda: len(list(tmp_path.glob("began-*"))) == 2, parent)
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not alive(tmp_path))


def kills(
    recipe: Path, out: Path, plan: list[tuple[str, int]], seed: int, processes: int
) -> list[str]:
    """Start the run once for each entry of the plan and kill it there; the stages it was in."""
    draw, hit = random.Random(seed), []
    words = ["-m", "manticore", "run", str(recipe), "--out", str(out), "--quiet"]
    for phase, count in plan:
        child = start([*words, "--processes", str(processes)], out)
        try:
            wait_for_mark(out, phase, count, child)
            time.sleep(draw.uniform(0, 0.03))
        finally:
            child.send_signal(signal.SIGKILL)
            status = child.wait()
        assert status == -signal.SIGKILL, child.stderr.read() if child.stderr else status
        hit.append(stage_of(out))
        wait_until(lambda: not alive(out))
    return hit


def start(words: list[str], life: Path, ready: str = "") -> subprocess.Popen[str]:
    """A Python process that, like all its children, carries a mark in its environment."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MANTICORE_TEST_LIFE": str(life)}
    return subprocess.Popen(
        [sys.executable, *words],
        env={**environment, "MANTICORE_TEST_READY": ready},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_mark(out: Path, phase: str, count: int, child: subprocess.Popen[str]) -> None:
    """Wait until the run is in a phase, or beyond, and has left `count` new marks there."""
    before = marks(out)
    seen: set[str] = set()

    def is_due() -> bool:
        if STAGES.index(stage_of(out)) < STAGES.index(phase):
            before.update(marks(out))  # what earlier phases leave does not count
            return False
        seen.update(marks(out) - before)
        return len(seen) >= count

    wait_until(is_due, child)


def wait_until(is_true, child: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_true():
        assert time.monotonic() < deadline, "nothing happened for too long"
        if child is not None and child.poll() is not None:
            raise AssertionError(f"ended by itself: {child.stderr.read() if child.stderr else ''}")
        time.sleep(0.002)


def marks(out: Path) -> set[str]:
    """What shows that a run has moved on: checkpoints, records, lines of the log."""
    found = set()
    for folder, folders, files in os.walk(out):
        found.update(f"{folder}/{name}" for name in folders if name.startswith(("step-", "final")))
        found.update(f"{folder}/{name}" for name in files if name.endswith(".json"))
    log = out / "metrics.jsonl"
    if log.exists():
        found.update(f"line {n}" for n in range(log.read_bytes().count(b"\n")))
    return found


def stage_of(out: Path) -> str:
    """The stage that a run is in, by what it has finished."""
    done = [stage for stage in STAGES[:-1] if (out / "stages" / f"{stage}.json").exists()]
    return STAGES[len(done)]


def alive(life: Path) -> list[int]:
    """Processes that carry the mark of `start`."""
    mark = f"MANTICORE_TEST_LIFE={life}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:  # it has ended, or is not ours
            continue
    return found


def assert_same_as_whole(recipe: Path, folder: Path) -> None:
    """Finish the killed run and compare everything that it left with an uninterrupted one."""
    for name in ("killed", "whole"):
        words = ["run", str(recipe), "--out", str(folder / name), "--quiet", "--processes", "1"]
        assert main(words) == 0
    killed, whole = tensors(folder / "killed"), tensors(folder / "whole")
    assert killed.keys() == whole.keys()
    assert any("/optimizer/" in name for name in whole)
    for name, value in whole.items():
        torch.testing.assert_close(killed[name], value, rtol=0, atol=EXACT, msg=name)
    assert timeless(folder / "killed") == timeless(folder / "whole")
    assert not partial_files(folder)


def tensors(out: Path) -> dict[str, torch.Tensor]:
    """All tensors below a folder, by file and name: weights, moments, random streams."""
    return {
        f"{file.relative_to(out)}:/{name}": value
        for file in sorted(out.rglob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def timeless(out: Path) -> dict[str, Any]:
    """Losses, trajectory, log and samples of a run, without what a clock or a meter said."""
    result = json.loads((out / "result.json").read_text())
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    search = json.loads((out / "stages" / "search.json").read_text())
    kept = {"rows": result["rows"], "samples": result["samples"], "goals": result["goals"]}
    return without_clock({**kept, "log": log, "search": search})


def without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        clocks = ("seconds", "peak_memory_bytes")
        return {key: without_clock(item) for key, item in value.items() if key not in clocks}
    if isinstance(value, list):
        return [without_clock(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


@pytest.fixture(autouse=True)
def _no_survivors(tmp_path: Path) -> Iterator[None]:
    yield
    for life in (tmp_path, tmp_path / "killed"):
        if Path("/proc").exists():
            for process in alive(life):
                os.kill(process, signal.SIGKILL)
    shutil.rmtree(tmp_path, ignore_errors=True)
