"""The benchmark of the tasks runs, and its committed record meets the goals."""

import importlib
import json

import pytest

from benchmarks.__main__ import RESULTS
from manticore.tasks.mad import TASK_VERSION

# A module that is called like a folder of the package is best fetched by its full name.
benchmark = importlib.import_module("benchmarks.tasks")


def test_a_row_holds_the_rates_of_both_ways_and_of_the_plain_loop():
    sizes = benchmark.Sizes(examples=8, test_examples=4, naive_examples=2, repeats=1)
    row = benchmark.measure(sizes, "fuzzy-in-context-recall", {"vocab_size": 32})
    assert row["settings"] == {"vocab_size": 32}
    rates = ("train_fixed", "train_mad-lab", "test_fixed", "test_mad-lab", "naive_train_fixed")
    assert all(row[name] > 0 for name in rates)


@pytest.mark.parametrize("task", benchmark.GOALS)
def test_the_committed_record_meets_the_goal(task):
    record = json.loads((RESULTS / "tasks.json").read_text(encoding="utf-8"))
    rows = [row for row in record["results"]["rows"] if row["task"] == task]
    assert rows
    for row in rows:
        assert row["version"] == TASK_VERSION[task]
        for split in ("train", "test"):
            assert min(row[f"{split}_fixed"], row[f"{split}_mad-lab"]) >= benchmark.GOALS[task]
