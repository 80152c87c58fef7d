"""The MAD verbs from the command line."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from manticore.cli.mad_entries import changed_protocol
from manticore.cli.main import main
from manticore.evaluation.mad import PROFILES, load_records, score
from tests.conftest import REPOSITORY

# One token mixer of width 8 on the quickest task.
ARCHITECTURE = ["--layers", "attention", "rwkv7-channel", "--d-model", "8"]
TASK = ["--tasks", "M", "--set", "seq_len=4", "--quiet"]
STEPS = 8


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """The pocket protocol in a few steps."""
    few = changed_protocol(PROFILES["pocket"], {}, steps=STEPS)
    few = dataclasses.replace(few, name="pocket", num_valid=32, num_test=32)
    monkeypatch.setitem(PROFILES, "pocket", few)


def manticore(*words: object) -> int:
    return main([str(word) for word in words])


def test_run_records_prints_and_continues_and_board_draws(tmp_path: Path, capsys):
    out = tmp_path / "mad"
    assert manticore("mad", "run", *ARCHITECTURE, *TASK, "--out", out) == 0
    assert "attention, rwkv7-channel" in capsys.readouterr().out
    first = {r["key"]: r for r in load_records([out])}
    assert manticore("mad", "run", *ARCHITECTURE, *TASK, "--seeds", "2", "--out", out) == 0
    both = {r["key"]: r for r in load_records([out])}
    assert len(both) == 2 * len(first)
    assert all(both[key] == record for key, record in first.items())
    (row,) = score(both.values())
    assert row.seeds == (0, 1)
    assert not row.missing
    capsys.readouterr()
    page, packed = tmp_path / "board.html", tmp_path / "all.jsonl"
    assert manticore("mad", "board", out, "--out", page, "--pack", packed) == 0
    assert "attention, rwkv7-channel" in page.read_text()
    assert {r["key"] for r in load_records([packed])} == set(both)
    assert manticore("mad", "board", packed, "--out", tmp_path / "board.md") == 0


def test_dry_run_counts_and_writes_nothing(tmp_path: Path, capsys):
    words = ["mad", "run", *ARCHITECTURE, "--profile", "full", "--out", tmp_path / "mad"]
    assert manticore(*words, "--dry-run", "--rate", "10") == 0
    said = capsys.readouterr().out
    for text in ("trainings: 396", "steps: 5,384,400", "FLOPs:", "hours:", "a stated 10 GFLOPs/s"):
        assert text in said
    assert not (tmp_path / "mad").exists()
    assert manticore("mad", "run", *ARCHITECTURE, *TASK, "--dry-run", "--out", tmp_path) == 0
    assert "timing a few steps" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_changed_rates_and_steps_make_a_protocol_of_their_own(tmp_path: Path, capsys):
    words = ["mad", "run", *ARCHITECTURE, "--out", tmp_path / "mad", "--dry-run", "--rate", "1"]
    assert manticore(*words, "--rates", "1e-3", "3e-3", "1e-2", "--steps", "7") == 0
    said = capsys.readouterr().out
    assert "pocket, rates=0.001/0.003/0.01, steps=7" in said
    settings = len(PROFILES["pocket"].settings)
    assert f"trainings: {3 * settings}" in said
    assert f"steps: {7 * 3 * settings}" in said


def test_search_dry_run_lists_the_layouts(tmp_path: Path, capsys):
    words = ["--token-mixers", "deltanet", "--channel-mixers", "rwkv7-channel", "--out", tmp_path]
    assert manticore("mad", "search", *words, "--dry-run", "--rate", "10") == 0
    said = capsys.readouterr().out
    assert "4 layouts" in said
    hours = re.findall(r"hours: ([\d.e-]+) (\(a stated 10 GFLOPs/s|if those)", said)
    # Four at an eighth of the steps, two at a quarter, one whole: 2 of 4.
    assert "50 % of these" in said
    assert float(hours[1][0]) == pytest.approx(float(hours[0][0]) / 2, rel=0.1)
    assert "8 % attention is no whole number of 4 blocks" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_search_writes_a_report_of_the_front(tmp_path: Path, capsys):
    words = ["--token-mixers", "deltanet", "--channel-mixers", "rwkv7-channel"]
    sizes = ["--blocks", "2", "--d-model", "16", "--shares", "0", "50", "100"]
    sizes += ["--attention", "attention"]
    out = tmp_path / "search"
    assert manticore("mad", "search", *words, *sizes, *TASK, "--out", out) == 0
    found = json.loads((out / "search.json").read_text())
    assert len(found["history"][0]["scores"]) == 3
    assert set(found["front"]) <= {one["name"] for one in found["scores"]}
    for name in ("search.html", "search.md"):
        assert found["front"][0] in (out / name).read_text()
    assert "lie on the Pareto front" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "atention"], "Did you mean 'attention'"),
        (["--preset", "Mambo"], "Did you mean 'Mamba'"),
        (["--layers", "attention:n_heads=3", "rwkv7-channel"], "does not divide"),
        ([*ARCHITECTURE, "--tasks", "XY"], "Known: in-context-recall (CR)"),
        ([*ARCHITECTURE, "--set", "seq_len=6"], "seq_len=6"),
        ([*ARCHITECTURE, "--set", "vocab_size=2"], "vocab_size=2"),
        ([*ARCHITECTURE, "--set", "vocab"], "key=value"),
        ([*ARCHITECTURE, "--rates", "0"], "positive numbers"),
        ([*ARCHITECTURE, "--rates", "nan"], "positive numbers"),
        ([*ARCHITECTURE, "--stack", "0"], "at least one training"),
        ([*ARCHITECTURE, "--d-model", "0"], "at least 1"),
        (["--layers", "mamba:d_state=x"], "is not a whole number"),
        (["--preset", "RWKV7", "--d-model", "-4"], "at least 1"),
        ([*ARCHITECTURE, "--steps", "0"], "at least one step"),
        ([*ARCHITECTURE, "--profile", "pokcet"], "Did you mean 'pocket'"),
        ([*ARCHITECTURE, "--compat", "mad-lab"], "Choose profile 'baseline' or 'full'"),
        ([*ARCHITECTURE, "--seeds", "0"], "at least one seed"),
        ([*ARCHITECTURE, "--workers", "0"], "1 or more"),
        ([*ARCHITECTURE, "--rate", "3"], "--rate is for --dry-run"),
        ([*ARCHITECTURE, "--module", "a:B"], "is not used"),
        (["--name", "x", "--preset", "RWKV7"], "--name is for --layers"),
        (["--preset", "RWKV7", "rwkv7"], "one name"),
        (["--hf-config", "missing.json"], "missing.json"),
        ([], "No architecture is named"),
    ],
)
def test_bad_input_names_what_to_do_and_leaves_nothing(
    tmp_path: Path, capsys, words: list[str], message: str
):
    out = tmp_path / "mad"
    assert manticore("mad", "run", *words, "--out", out) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_two_files_called_config_are_told_apart_by_their_folders(tmp_path: Path, capsys):
    paths = [tmp_path / name / "config.json" for name in ("small", "large")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(json.dumps({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}))
    out = tmp_path / "mad"
    words = ["mad", "run", "--hf-config", *paths, *TASK, "--rate", "1", "--dry-run", "--out", out]
    assert manticore(*words) == 0
    assert {"small", "large"} <= set(capsys.readouterr().out.replace(":", " ").split())
    paths[0].write_bytes(b"\xff\x00")
    assert manticore(*words) == 2
    assert f"{paths[0]} is not valid JSON" in capsys.readouterr().err


def test_layers_and_configurations_of_other_libraries_take_part(tmp_path: Path, capsys):
    (tmp_path / "mlp.yml").write_text("{dim: 8, dim_inner: 32}")
    (tmp_path / "gla.json").write_text(
        json.dumps({"model_type": "gla", "hidden_size": 16, "num_hidden_layers": 1, "num_heads": 2})
    )
    words = ["mad", "run", "--hf-config", tmp_path / "gla.json", "--layers", "attention"]
    words += [tmp_path / "mlp.yml", *TASK, "--rate", "1", "--dry-run", "--out", tmp_path / "mad"]
    assert manticore(*words, "--d-model", "8") == 0
    printed = capsys.readouterr().out
    assert "architecture: gla: parameters" in printed
    assert "architecture: attention, mlp" in printed
    assert manticore(*words, "--d-model", "16") == 2
    assert "Choose --d-model 8" in capsys.readouterr().err


def test_a_board_is_a_page(tmp_path: Path, capsys):
    assert manticore("mad", "board", tmp_path, "--out", tmp_path / "x.pdf") == 2
    assert ".html or .md" in capsys.readouterr().err


def test_results_of_another_version_are_refused_and_kept(tmp_path: Path, capsys):
    about = {"schema": 1, "profile": "pocket", "protocol_version": -1}
    (tmp_path / "sweep.json").write_text(json.dumps(about))
    assert manticore("mad", "run", *ARCHITECTURE, "--out", tmp_path) == 2
    assert "protocol_version -1, now" in capsys.readouterr().err
    assert json.loads((tmp_path / "sweep.json").read_text()) == about


def test_a_board_of_nothing_says_so(tmp_path: Path, capsys):
    assert manticore("mad", "board", tmp_path, "--out", tmp_path / "x.html") == 2
    assert "no sweep.json" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_continues_with_what_is_not_recorded(tmp_path: Path):
    words = ["mad", "run", *ARCHITECTURE, *TASK, "--seeds", "6", "--stack", "1", "--out"]
    code = (
        "import sys; from dataclasses import replace\n"
        "from manticore.cli.main import main\n"
        "from manticore.evaluation.mad import PROFILES\n"
        "from manticore.cli.mad_entries import changed_protocol\n"
        f"few = changed_protocol(PROFILES['pocket'], {{}}, steps={STEPS})\n"
        "PROFILES['pocket'] = replace(few, name='pocket', num_valid=32, num_test=32)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    killed = tmp_path / "killed"
    child = subprocess.Popen(
        [sys.executable, "-c", code, *words, str(killed)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    deadline = time.monotonic() + 120
    while len(list(killed.glob("trials/*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    before = {r["key"]: r for r in load_records([killed])}
    assert 3 <= len(before) < 12
    assert manticore(*words, killed) == 0
    assert manticore(*words, tmp_path / "whole") == 0
    after = {r["key"]: r for r in load_records([killed])}
    assert all(after[key] == record for key, record in before.items())
    whole = {r["key"]: r for r in load_records([tmp_path / "whole"])}
    assert {k: _numbers(r) for k, r in after.items()} == {k: _numbers(r) for k, r in whole.items()}


def _numbers(record: dict) -> dict:
    """What a training found, without the time that it took."""
    return {k: v for k, v in record["result"].items() if k != "seconds"}
