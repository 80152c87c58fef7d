"""Every benchmark runs on tiny shapes and writes a whole record; speed itself is not tested."""

import importlib
import json
import math
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from benchmarks.__main__ import known_benchmarks, main, record
from benchmarks._pair import Pair, Rounds, build_components, build_hybrid, random_ids, training_step
from benchmarks.stacked import Shape

TINY = Pair(vocab_size=64, neox_width=16, mamba_width=8, n_layers=2, batch=2, seq_len=16)
ONE_OF_EACH = (("streams", 2), ("shared", 1))
SIZES: dict[str, dict[str, Any]] = {
    "hybrid": {
        "pair": TINY,
        "larger": TINY,
        "hybrids": ONE_OF_EACH,
        "contexts": (4,),
        "growth": (4, 8),
        "new_tokens": 2,
        "larger_context": 4,
        "training_rounds": 1,
        "decode_rounds": 1,
    },
    "ridge": {"pair": TINY, "hybrids": ONE_OF_EACH, "batches": 2, "rounds": 1},
    "memory": {"pair": TINY, "hybrids": ONE_OF_EACH[:1]},
    "stacked": {
        "shapes": (Shape(d_model=16, seq_len=8, batch=2, steps=1),),
        "rounds": 1,
        "in_subprocess": False,
    },
    "tasks": {"examples": 8, "test_examples": 8, "naive_examples": 2, "repeats": 1},
    "conversion": {
        "mixers": ("retention", "mamba"),
        "hidden_size": 32,
        "n_layers": 2,
        "n_heads": 2,
        "vocab_size": 64,
        "tokens": 16,
        "lengths": (8, 16),
        "short_context": 8,
        "long_context": 32,
        "piece": 16,
        "rounds": 1,
        "decoded": 1,
    },
    "mixers": {
        "d_model": 32,
        "tokens": 16,
        "lengths": (8, 16),
        "scan_shape": (1, 2, 8, 4),
        "repeats": 1,
    },
}


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield value


def run_tiny(name: str, folder: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(module, "SIZES", module.Sizes(**SIZES[name]))
    return json.loads(record(name, 1, folder).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SIZES)
def test_a_benchmark_writes_a_record(name, tmp_path, monkeypatch):
    made = run_tiny(name, tmp_path, monkeypatch)
    assert made["name"] == name
    assert made["command"].endswith(name)
    assert {"environment", "date", "cpu", "threads", "results"} <= set(made)
    found = list(numbers(made["results"]))
    assert len(found) > 10
    assert all(math.isfinite(number) for number in found)


def test_a_benchmark_that_draws_leaves_a_picture_beside_its_record(tmp_path, monkeypatch):
    run_tiny("conversion", tmp_path, monkeypatch)
    picture = ElementTree.fromstring((tmp_path / "conversion.svg").read_text(encoding="utf-8"))
    texts = {element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"attention", "retention", "mamba", "cache, KiB"} <= texts


@pytest.mark.parametrize("name", [*SIZES, "families", "scan"])
def test_every_benchmark_has_a_committed_record(name):
    module = importlib.import_module("benchmarks.__main__")
    committed = json.loads((module.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert name in known_benchmarks()
    assert committed["name"] == name
    assert all(math.isfinite(number) for number in numbers(committed["results"]))


def test_an_unknown_benchmark_lists_the_known_ones(capsys):
    assert main(["hybird"]) == 2
    assert "hybrid, memory, mixers, " in capsys.readouterr().err


def test_counted_memory_is_the_largest_sum_of_live_tensors():
    memory = importlib.import_module("benchmarks.memory")

    def work() -> None:
        first = torch.zeros(1000)  # 4,000 bytes
        second = first + 1  # 8,000 live
        del first
        third = second + 1  # 8,000 again, not 12,000
        del second, third

    assert memory.peak_allocated(work) == pytest.approx(8000, abs=256)  # blocks are aligned


def test_an_idle_branch_takes_no_memory_in_a_training_step():
    memory = importlib.import_module("benchmarks.memory")
    hybrid = build_hybrid(TINY, 2, "streams")
    hybrid.set_mixture(torch.tensor([[0.0, 1.0]] * 2))
    ids = random_ids(TINY)
    peaks = []
    for model in (hybrid, build_components(TINY)[1]):
        step = training_step(model, ids)
        step()
        model.zero_grad()
        peaks.append(memory.peak_allocated(step))
    assert peaks[0] < 1.05 * peaks[1]


def test_works_take_turns_and_ratios_are_of_one_round():
    calls: list[str] = []
    works = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    rounds = Rounds(works, 3)
    assert calls.count("a") == calls.count("b") == 4  # one of them warms up
    rounds.seconds = {"a": [2.0, 9.0, 6.0], "b": [1.0, 3.0, 4.0], "c": [1.0, 0.0, 0.0]}
    assert rounds.ratio("a", "b", "c") == 1.5  # of 1, 3 and 1.5
    assert rounds.row("a", "b", tokens=2)["a_seconds"] == 1.0
