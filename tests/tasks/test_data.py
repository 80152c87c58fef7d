"""The door to the tasks: the same examples for any calls, splits apart, errors that mend."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import FrozenInstanceError, fields
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest

from manticore.tasks.blocks import BLOCK, quarter_of
from manticore.tasks.mad import (
    MAD_TASKS,
    TASK_VERSION,
    TASKS,
    ceiling,
    chance,
    example_length,
    make_data,
    make_range,
    model_kind,
    task_settings,
)

ALL = list(TASKS)


def rows_of(inputs):
    return {row.tobytes() for row in inputs}


@pytest.mark.parametrize("task", ALL)
def test_arrays_are_int64_of_the_announced_length(task):
    for compat in ("fixed", "mad-lab"):
        inputs, targets = make_data(task, 3, 0, compat=compat)
        assert inputs.dtype == targets.dtype == np.int64
        assert inputs.shape == targets.shape == (3, example_length(task))
        assert inputs.min() >= 0
        assert inputs.max() < task_settings(task).vocab_size
        assert targets.max() < task_settings(task).vocab_size
        assert ((targets >= 0) | (targets == -100)).all()


@pytest.mark.parametrize("task", ALL)
def test_a_longer_set_begins_with_the_shorter_one(task):
    longer = make_data(task, BLOCK + 77, 5, "valid")
    for n in (1, 63, BLOCK, BLOCK + 1):
        for short, long in zip(make_data(task, n, 5, "valid"), longer, strict=True):
            assert short.shape[0] == n
            assert short.tobytes() == long[:n].tobytes()


def test_four_workers_make_the_same_bytes_as_one():
    n = 2 * BLOCK + 333  # not divisible by four
    bounds = [n * i // 4 for i in range(5)]
    for task in ("fuzzy-in-context-recall", "selective-copying"):
        make = partial(make_range, task, seed=7)
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(make, bounds[:-1], bounds[1:]))
        for i, whole in enumerate(make_data(task, n, 7)):
            assert np.concatenate([part[i] for part in parts]).tobytes() == whole.tobytes()


@pytest.mark.parametrize("task", ALL)
def test_seeds_and_splits_make_other_rows(task):
    sets = [
        rows_of(make_data(task, 300, seed, split)[0])
        for seed in (0, 1)
        for split in ("train", "valid", "test")
    ]
    for i, one in enumerate(sets):
        assert all(not one & other for other in sets[i + 1 :])


@pytest.mark.parametrize("compat", ["fixed", "mad-lab"])
@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("parity", {"seq_len": 7}),
        ("compression", {"vocab_size": 4, "seq_len": 6}),
        ("in-context-recall", {"vocab_size": 4, "seq_len": 8}),
        ("fuzzy-in-context-recall", {"vocab_size": 7, "seq_len": 13}),
        ("memorization", {"vocab_size": 8, "seq_len": 6}),
        ("selective-copying", {"vocab_size": 4, "seq_len": 10, "num_tokens_to_copy": 3}),
    ],
)
def test_splits_share_no_row_even_where_there_are_few(task, settings, compat):
    splits = [
        rows_of(make_data(task, 3000, seed, split, compat, **settings)[0])
        for seed, split in ((0, "train"), (1, "train"), (0, "valid"), (0, "test"), (1, "test"))
    ]
    train = splits[0] | splits[1]
    test = splits[3] | splits[4]
    assert len(train) < 3000 * 2  # rows come back: there are few
    assert not train & splits[2]
    assert not train & test
    assert not splits[2] & test


def test_half_of_all_rows_belong_to_training():
    # Values 0 and 1 of the hash are training's, 2 validation's, 3 test's.
    rows = np.random.default_rng(0).integers(4, size=(20_000, 9))
    counts = np.bincount(quarter_of(np.unique(rows, axis=0)).astype(int), minlength=4)
    assert np.abs(counts / counts.sum() - 1 / 4).max() < 0.01


def test_too_few_rows_for_a_split_are_refused():
    with pytest.raises(ValueError, match=r"No row of parity .* split.*Raise seq_len"):
        for split in ("train", "valid", "test"):
            make_data("parity", 1, 0, split, seq_len=2)


@pytest.mark.parametrize("task", ALL)
def test_bounds_are_shares(task):
    for compat in ("fixed", "mad-lab"):
        assert 0 < chance(task, compat) < ceiling(task, compat=compat) <= 1
    assert TASK_VERSION[task] >= 1
    assert model_kind(task) in ("lm", "autoencoder")


@pytest.mark.parametrize("task", [task for task in MAD_TASKS if task != "compression"])
def test_chance_is_what_guessing_answers_reaches(task):
    _, targets = make_data(task, 4000, 0, "test")
    scored = targets[targets >= 0]
    answers = np.unique(scored)
    guesses = np.random.default_rng(0).choice(answers, size=scored.shape)
    # Memorization leaves one value without a key, which a guess may hit upon.
    error = 4 * np.sqrt(chance(task) / len(scored)) + 0.001 * chance(task)
    assert (guesses == scored).mean() == pytest.approx(chance(task), abs=error + 1e-4)


@pytest.mark.parametrize("task", ALL)
def test_settings_are_frozen(task):
    made = task_settings(task)
    with pytest.raises(FrozenInstanceError):
        setattr(made, fields(made)[0].name, 1)


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Did you mean 'compression'\? Known: in-context-recall"):
        make_data("compresion", 1, 0)


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("mqar", {"num_kv_pair": 2}, "Did you mean 'num_kv_pairs'.*Known: vocab_size"),
        ("in-context-recall", {"frac_noise": 0.1}, "a setting of noisy-in-context-recall"),
        ("in-context-recall", {"seq_len": 127}, "odd.*126 or 128"),
        ("in-context-recall", {"seq_len": 2}, "Allowed: 4 and more"),
        ("in-context-recall", {"vocab_size": 3}, "Allowed: 4 and more"),
        ("in-context-recall", {"vocab_size": 4, "multi_query": False}, "Allowed: 5 and more"),
        ("in-context-recall", {"vocab_size": 16.0}, "not a whole number"),
        ("in-context-recall", {"multi_query": "False"}, "Allowed: True, False"),
        ("noisy-in-context-recall", {"vocab_size": 19}, "Allowed: 20 and more"),
        ("noisy-in-context-recall", {"frac_noise": 1.0}, "not a share"),
        ("noisy-in-context-recall", {"noise_vocab_size": 0}, "contradicts noise_vocab_size=0"),
        ("fuzzy-in-context-recall", {"seq_len": 12}, "Allowed: 13 and more"),
        ("fuzzy-in-context-recall", {"vocab_size": 6}, "Allowed: 7 and more"),
        ("fuzzy-in-context-recall", {"k_motif_size": 0}, "Allowed: 1 and more"),
        ("fuzzy-in-context-recall", {"vocab_size": 99, "k_motif_size": 20}, "Lower k_motif_size"),
        ("memorization", {"vocab_size": 4}, "Allowed: 5 and more"),
        ("memorization", {"seq_len": 31}, "odd.*30 or 32"),
        ("compression", {"frac_noise": 0.2}, "contradicts noise_vocab_size=0"),
        ("compression", {"seq_len": 1}, "Allowed: 2 and more"),
        ("selective-copying", {"seq_len": 33}, "Allowed: 34 and more"),
        ("selective-copying", {"vocab_size": 3}, "Allowed: 4 and more"),
        ("mqar", {"vocab_size": 64}, "Allowed: 65 and more"),
        ("mqar", {"num_kv_pairs": 17}, "Allowed: 68 and more"),
        ("mqar", {"power_a": 0}, "not a power"),
        ("modular-addition", {"modulus": 1}, "Allowed: 2 and more"),
    ],
)
def test_settings_that_cannot_be_are_refused(task, settings, message):
    for use in (partial(make_data, task, 1, 0), partial(ceiling, task), partial(chance, task)):
        with pytest.raises(ValueError, match=message):
            use(**settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "num_examples=0 is too small"),
        ((2.5, 0), "num_examples=2.5 is not a whole number"),
        ((1, "0"), "seed='0' is not a whole number"),
        ((1, 0, "validation"), "Unknown split.*Known: train, valid, test"),
        ((1, 0, "train", "madlab"), "Did you mean 'mad-lab'"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_data("compression", *arguments)


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("in-context-recall", {"seq_len": 8, "vocab_size": 8}),
        ("fuzzy-in-context-recall", {"seq_len": 13, "vocab_size": 7}),
        ("selective-copying", {"num_tokens_to_copy": 6, "seq_len": 14, "vocab_size": 4}),
        ("mqar", {"num_kv_pairs": 16, "vocab_size": 65}),
    ],
)
def test_the_least_allowed_sizes_work(task, settings):
    for split in ("train", "valid", "test"):
        assert len(make_data(task, 700, 0, split, **settings)[0]) == 700


def test_numpy_integers_are_integers():
    found = make_data("parity", np.int64(3), np.int64(4))
    assert (found[0] == make_data("parity", 3, 4)[0]).all()


def test_importing_is_quick_and_needs_neither_torch_nor_transformers(run_python):
    code = (
        "import sys, time\nstart = time.process_time()\n"
        "for name in ('torch', 'transformers'): sys.modules[name] = None\n"
        "from manticore.tasks.mad import TASKS, make_data\n"
        "seconds = time.process_time() - start\n"
        "for name in TASKS: make_data(name, 2, 0)\nprint(seconds)"
    )
    assert min(float(run_python("-c", code).stdout) for _ in range(2)) < 1
