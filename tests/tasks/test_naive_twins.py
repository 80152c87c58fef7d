"""Fast draws and plain loops follow the same law: all rows of tiny settings, counted."""

import numpy as np
import pytest

from manticore.tasks.mad import TASKS, task_settings
from manticore.tasks.task import Request
from tests.tasks.statistics import deviation

N = 8000
RECALL, NOISY = "in-context-recall", "noisy-in-context-recall"
FUZZY = "fuzzy-in-context-recall"
TINY = [
    (RECALL, {"vocab_size": 5, "seq_len": 6}),
    (RECALL, {"vocab_size": 5, "seq_len": 6, "multi_query": False}),
    (NOISY, {"vocab_size": 5, "seq_len": 6, "noise_vocab_size": 1, "frac_noise": 0.6}),
    (FUZZY, {"vocab_size": 6, "seq_len": 11, "k_motif_size": 1, "v_motif_size": 2}),
    (FUZZY, {"vocab_size": 5, "seq_len": 9, "k_motif_size": 2, "v_motif_size": 1}),
    (FUZZY, {"vocab_size": 6, "seq_len": 7, "v_motif_size": 1, "k_motif_size": 2,
             "multi_query": False}),
    (FUZZY, {"vocab_size": 6, "seq_len": 9, "k_motif_size": 1, "v_motif_size": 1,
             "noise_vocab_size": 1, "frac_noise": 0.4}),
    ("memorization", {"vocab_size": 6, "seq_len": 6, "noise_vocab_size": 1, "frac_noise": 0.4}),
    ("compression", {"vocab_size": 4, "seq_len": 5, "noise_vocab_size": 1, "frac_noise": 0.4}),
    ("selective-copying", {"vocab_size": 4, "seq_len": 9, "num_tokens_to_copy": 2}),
    ("mqar", {"vocab_size": 15, "seq_len": 14, "num_kv_pairs": 1, "power_a": 0.1,
              "random_non_queries": False}),
    ("mqar", {"vocab_size": 9, "seq_len": 8, "num_kv_pairs": 2, "random_non_queries": False}),
    ("parity", {"seq_len": 5}),
    ("modular-addition", {"seq_len": 3, "modulus": 5}),
    ("s5", {"seq_len": 1}),
]  # fmt: skip


def fast_rows(name, request, settings, n=N):
    """Inputs and targets side by side, before the split sorts rows out."""
    task = TASKS[name]
    rows = task.draw(np.random.default_rng(1), n, task_settings(name, **settings), request)
    both = np.concatenate([rows.inputs, rows.targets], axis=1).astype(np.int16)
    return list(both if rows.keep is None else both[rows.keep])


def naive_rows(name, request, settings, n=N):
    task, made = TASKS[name], task_settings(name, **settings)
    rng = np.random.default_rng(2)
    drawn = (task.naive(rng, made, request) for _ in range(n))
    return [np.array([*row[0], *row[1]], dtype=np.int16) for row in drawn if row is not None]


@pytest.mark.parametrize("compat", ["fixed", "mad-lab"])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("name", "settings"), TINY, ids=lambda value: str(value)[:24])
def test_fast_draw_follows_the_law_of_the_plain_loop(name, settings, split, compat):
    request = Request(seed=0, split=split, compat=compat)
    fast, naive = fast_rows(name, request, settings), naive_rows(name, request, settings)
    # As many rows break off in both: a difference of two counts, four standard deviations.
    assert abs(len(fast) - len(naive)) <= 4 * np.sqrt(2 * min(N - len(fast) + 5, N / 4))
    assert deviation(fast, naive) < 4.5


def test_the_comparison_tells_laws_apart():
    name, settings = TINY[9]
    ours, theirs = (
        fast_rows(name, Request(seed=0, split="test", compat=compat), settings)
        for compat in ("fixed", "mad-lab")
    )
    assert deviation(ours, theirs) > 20


@pytest.mark.parametrize("name", TASKS)
def test_baselines_have_the_same_length_in_both(name):
    request = Request(seed=0, split="train", compat="fixed")
    fast, naive = (rows(name, request, {}, 5) for rows in (fast_rows, naive_rows))
    assert len(fast[0]) == len(naive[0]) == 2 * task_settings(name).example_length
