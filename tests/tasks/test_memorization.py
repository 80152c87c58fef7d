"""Memorization: the facts, what training shows of them, and the ceiling that follows."""

from itertools import permutations

import numpy as np
import pytest

from manticore.tasks.mad import ceiling, make_data
from tests.tasks.parsers import read_memorization
from tests.tasks.statistics import assert_mean, assert_uniform

TASK = "memorization"


def read_all(n, seed=0, split="train", compat="fixed", **settings):
    rows = zip(*make_data(TASK, n, seed, split, compat, **settings), strict=True)
    how = {"vocab_size": settings.get("vocab_size", 256)}
    return [read_memorization(*r, **how, noise=settings.get("noise_vocab_size", 0)) for r in rows]


def facts(*args, **kwargs):
    """The facts seen, as a map; fails if they contradict each other."""
    pairs = {fact for row in read_all(*args, **kwargs) for fact in row.facts}
    assert len(dict(pairs)) == len(pairs)
    assert len({value for _, value in pairs}) == len(pairs)
    return dict(pairs)


def test_mad_lab_has_the_facts_of_its_seed():
    # As the original draws them: lists of one-token motifs, shuffled by one generator in turn.
    rng = np.random.default_rng(12345)
    keys, values = list(permutations(range(127), 1)), list(permutations(range(127, 255), 1))
    rng.shuffle(keys)
    rng.shuffle(values)
    expected = {k: v for (k,), (v,) in zip(keys, values, strict=False)}
    for seed in (0, 1):
        assert facts(256, seed, compat="mad-lab") == expected


def test_our_facts_follow_the_seed_and_are_the_same_in_all_splits():
    first = facts(256, 0)
    assert len(first) == 127
    assert facts(256, 0, "test") == facts(256, 0, "valid") == first
    assert sum(facts(256, 1)[key] == value for key, value in first.items()) < 10


def test_targets_stand_where_the_value_is_asked_for():
    inputs, targets = make_data(TASK, 100, 0)
    assert inputs.shape == (100, 32)
    assert (targets[:, ::2] == -100).all()
    assert (targets[:, 1::2] != -100).all()
    assert (inputs[:, 1::2] == 255).all()
    assert_uniform(np.bincount(make_data(TASK, 2000, 0)[0][:, ::2].ravel(), minlength=127))


def test_noise_is_not_scored_and_leaves_one_fact():
    seen = read_all(2000, vocab_size=40, noise_vocab_size=8, frac_noise=0.5)
    assert_mean([len(row.noise_slots) for row in seen], 0.5 * 15)
    assert min(len(row.facts) for row in seen) >= 1


@pytest.mark.parametrize(
    ("vocab_size", "published"),
    [(256, 1.0), (512, 1.0), (1024, 0.9997), (2048, 0.982), (4096, 0.865), (8192, 0.632)],
)
def test_the_ceiling_is_what_training_shows(vocab_size, published):
    limit = ceiling(TASK, vocab_size=vocab_size)
    assert limit == pytest.approx(published, abs=0.0005)
    n_keys = (vocab_size - 1) // 2
    assert limit == pytest.approx(1 - (1 - 1 / n_keys) ** (256 * 16))
    # One training set is off by up to 0.006 (standard deviation); the mean of ten by a third.
    inputs = [make_data(TASK, 256, seed, vocab_size=vocab_size)[0] for seed in range(10)]
    shown = np.mean([len(np.unique(rows[:, ::2])) / n_keys for rows in inputs])
    assert shown == pytest.approx(limit, abs=0.008)


def test_the_ceiling_follows_the_training_examples_and_the_noise():
    settings = {"vocab_size": 2048, "noise_vocab_size": 100, "frac_noise": 0.5}
    limit = ceiling(TASK, num_train=64, **settings)
    assert limit < ceiling(TASK, num_train=64, vocab_size=2048)
    n_keys = (2047 - 100) // 2
    assert len(facts(64, **settings)) / n_keys == pytest.approx(limit, abs=0.04)
