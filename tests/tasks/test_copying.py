"""Selective copying, read back; where the blanks stand."""

import numpy as np
import pytest

from manticore.tasks.mad import make_data
from tests.tasks.parsers import read_copying
from tests.tasks.statistics import assert_mean, assert_uniform

TASK = "selective-copying"


def places(n=1500, compat="fixed", vocab_size=16, count=16, **settings):
    """Where the content stands, (n, count)."""
    rows = make_data(
        TASK, n, 0, "test", compat, vocab_size=vocab_size, num_tokens_to_copy=count, **settings
    )
    read = (read_copying(*r, vocab_size=vocab_size, count=count) for r in zip(*rows, strict=True))
    return np.array(list(read))


@pytest.mark.parametrize("compat", ["fixed", "mad-lab"])
@pytest.mark.parametrize("sizes", [(16, 16, 256), (4, 2, 20), (128, 3, 8), (16, 96, 256)])
def test_every_example_reads_back(sizes, compat):
    vocab_size, count, seq_len = sizes
    found = places(50, compat, vocab_size, count, seq_len=seq_len)
    assert found.shape == (50, count)
    assert found.max() < seq_len - count - 1


def test_content_is_uniform():
    _, targets = make_data(TASK, 2000, 0)
    assert_uniform(np.bincount(targets[targets >= 0], minlength=14))
    assert ((targets >= 0).sum(axis=1) == 16).all()


def test_mad_lab_leaves_no_blank_after_the_last_token():
    found = places(compat="mad-lab")
    assert (found[:, -1] == 256 - 16 - 2).all()
    gaps = np.diff(found, axis=1, prepend=-1) - 1
    assert_mean(gaps[:, 0], 223 / 16)  # published: 13.94
    assert gaps.mean() == pytest.approx(13.94, abs=0.15)
    # Multinomial: 223 * 1/16 * 15/16 = 13.07. The variance of n normal gaps has a standard
    # error of variance * sqrt(2 / n).
    assert gaps.var() == pytest.approx(13.07, rel=4 * np.sqrt(2 / 1500))


def test_our_content_stands_anywhere():
    found = places(3000)
    # All subsets equally likely: each place holds content equally often.
    assert_uniform(np.bincount(found.ravel(), minlength=239))
    # The largest of a subset of 16 of 0..238: 16 * 240 / 17 - 1.
    assert_mean(found[:, -1], 16 * 240 / 17 - 1)


def test_making_data_leaves_the_global_generator_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    make_data(TASK, 600, 0, compat="mad-lab")
    assert (np.random.get_state()[1] == before).all()
