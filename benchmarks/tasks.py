"""Making data: examples per second of each task on one core, and of the plain loops beside them.

Fuzzy recall is measured at every vocabulary of the paper. `naive` draws one example at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks._timing import NOTE, cpu_seconds
from manticore.tasks.mad import MAD_TASKS, TASK_VERSION, TASKS, example_length, make_data
from manticore.tasks.mad import task_settings as settings_of
from manticore.tasks.task import Request

GOALS = {task: 10_000 if task.startswith("fuzzy") else 100_000 for task in MAD_TASKS}
"""Examples per second, in both splits."""
FUZZY_VOCABULARIES = (32, 64, 128)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is made and how often."""

    examples: int = 16_384
    test_examples: int = 4_096
    naive_examples: int = 50
    repeats: int = 5


SIZES = Sizes()


def run() -> dict[str, Any]:
    """Measure every task at its baseline, and fuzzy recall at larger vocabularies."""
    rows = [measure(SIZES, task, {}) for task in TASKS]
    rows += [
        measure(SIZES, "fuzzy-in-context-recall", {"vocab_size": size})
        for size in FUZZY_VOCABULARIES
    ]
    return {"timing": NOTE, "unit": "examples per CPU second", "goals": GOALS, "rows": rows}


def measure(sizes: Sizes, task: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Examples per second of both ways, for training and test."""
    rates = {
        f"{split}_{compat}": number
        / cpu_seconds(
            lambda n=number, s=split, c=compat: make_data(task, n, 0, s, c, **settings),
            sizes.repeats,
        )
        for split, number in (("train", sizes.examples), ("test", sizes.test_examples))
        for compat in ("fixed", "mad-lab")
    }
    return {
        "task": task,
        "version": TASK_VERSION[task],
        "settings": settings,
        "example_length": example_length(task, **settings),
        **rates,
        "naive_train_fixed": naive_rate(sizes, task, settings),
    }


def naive_rate(sizes: Sizes, task: str, settings: dict[str, Any]) -> float:
    """Examples per second of the plain loop."""
    request = Request(seed=0, split="train", compat="fixed")
    made, rng = settings_of(task, **settings), np.random.default_rng(0)

    def work() -> None:
        for _ in range(sizes.naive_examples):
            TASKS[task].naive(rng, made, request)

    return sizes.naive_examples / cpu_seconds(work, sizes.repeats)
