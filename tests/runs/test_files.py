"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from manticore.runs import atomic_folder, files, write_json, write_text

ROOT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_record_is_read_back_with_numbers_out_of_arrays(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"x": np.float32(0.5), "y": np.arange(3), "z": (1, None)})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {
        "x": 0.5,
        "y": [0, 1, 2],
        "z": [1, None],
    }


def test_numbers_that_json_lacks_become_words_that_float_reads(tmp_path):
    write_json(tmp_path / "x.json", [math.inf, -math.inf, math.nan])
    text = (tmp_path / "x.json").read_text()
    values = json.loads(text, parse_constant=pytest.fail)
    assert [float(value) for value in values[:2]] == [math.inf, -math.inf]
    assert math.isnan(float(values[2]))


def test_a_value_that_no_record_can_hold_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError, match="cannot hold"):
        write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_text(tmp_path / "x.txt", "old")

    def fail(descriptor):
        raise RuntimeError("power cut")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        write_text(tmp_path / "x.txt", "new" * 1000)
    assert (tmp_path / "x.txt").read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


def test_a_full_disk_names_the_file_and_the_way_out(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match=r"Free some space .*--out.*x\.json") as caught:
        write_json(tmp_path / "x.json", 1)
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device_is_recognised(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_beside", lambda path: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    with pytest.raises(OSError, match=r"Free some space .*x\.txt"):
        write_text(tmp_path / "x.txt", "text")


def test_a_folder_takes_its_place_only_when_the_block_ends_well(tmp_path):
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("1")
        assert not (tmp_path / "model").exists()
    assert names(tmp_path) == ["model"]

    with pytest.raises(RuntimeError, match="crash"), atomic_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("2")
        raise RuntimeError("crash")
    assert (tmp_path / "model" / "weights").read_text() == "1"
    assert names(tmp_path) == ["model"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for file in ("first", "second"):
        with atomic_folder(tmp_path / "model") as folder:
            (folder / file).write_text(file)
    assert names(tmp_path / "model") == ["second"]
    assert names(tmp_path) == ["model"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, monkeypatch):
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("1")
    (tmp_path / "model").rename(tmp_path / ".model.replaced")  # as the kill leaves it
    files.finish_interrupted(tmp_path)
    assert (tmp_path / "model" / "weights").read_text() == "1"
    assert names(tmp_path) == ["model"]


def test_an_error_about_another_file_inside_the_block_is_passed_on(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"), atomic_folder(tmp_path / "model"):
        Path("/absent/file").read_text()


def test_a_full_disk_told_by_safetensors_is_recognised(tmp_path):
    with (
        pytest.raises(OSError, match="Free some space"),
        atomic_folder(tmp_path / "model"),
    ):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_sigkill_while_writing_leaves_a_whole_file(tmp_path):
    code = (
        "import itertools, sys\nfrom manticore.runs import write_json\n"
        "for i in itertools.count(): write_json(sys.argv[1], {'i': i, 'filling': [i] * 20000})"
    )
    path = tmp_path / "x.json"
    for delay in (0.0, 0.013, 0.029, 0.041, 0.057):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": "."}
        )
        deadline = time.monotonic() + 30
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(delay)
        writer.kill()
        assert writer.wait() == -signal.SIGKILL
        record = json.loads(path.read_text())
        assert record["filling"] == [record["i"]] * 20000
    files.finish_interrupted(tmp_path)
    assert names(tmp_path) == ["x.json"]
