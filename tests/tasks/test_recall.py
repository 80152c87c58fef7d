"""In-context recall, plain and noisy, read back and compared with published figures."""

from collections import Counter

import numpy as np
import pytest

from manticore.tasks.mad import make_data
from tests.tasks.parsers import read_recall
from tests.tasks.statistics import assert_mean, assert_share, assert_uniform

PLAIN, NOISY = "in-context-recall", "noisy-in-context-recall"
N = 3000


def read_all(task, split="test", compat="fixed", n=N, **settings):
    inputs, targets = make_data(task, n, 1, split, compat, **settings)
    vocab_size = settings.get("vocab_size", 32 if task == NOISY else 16)
    how = {
        "vocab_size": vocab_size,
        "noise": settings.get("noise_vocab_size", 16) if task == NOISY else 0,
        "multi_query": settings.get("multi_query", True),
        "scores_all": split == "train" and compat == "mad-lab",
    }
    return [read_recall(*row, **how) for row in zip(inputs, targets, strict=True)]


@pytest.mark.parametrize("compat", ["fixed", "mad-lab"])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize(
    ("task", "settings"),
    [
        (PLAIN, {}),
        (PLAIN, {"vocab_size": 17, "multi_query": False}),
        (PLAIN, {"vocab_size": 7, "seq_len": 14}),
        (NOISY, {}),
        (NOISY, {"frac_noise": 0.9, "seq_len": 16, "noise_vocab_size": 3, "vocab_size": 12}),
        (NOISY, {"vocab_size": 33, "multi_query": False, "frac_noise": 0.5}),
    ],
)
def test_every_example_reads_back(task, settings, split, compat):
    assert len(read_all(task, split, compat, 60, **settings)) == 60


def test_baseline_shows_the_published_figures():
    inputs, _ = make_data(PLAIN, 10, 0, "test")
    assert inputs.shape == (10, 127)
    seen = read_all(PLAIN)
    # 63 pairs of 8 keys, and the last pair: 64 - 8 (1 - (7/8)^63), published as 56.0.
    expected = 64 - 8 * (1 - (7 / 8) ** 63)
    assert expected == pytest.approx(56.0, abs=0.05)
    assert_mean([row.scored for row in seen], expected)
    assert_mean([len(set(row.keys)) for row in seen], 64 - expected)


def test_a_single_query_has_one_target():
    inputs, targets = make_data(PLAIN, 100, 0, "test", vocab_size=17, multi_query=False)
    assert inputs.shape == (100, 128)
    assert ((targets != -100).sum(axis=1) == 1).all()
    assert ((inputs == 16).sum(axis=1) == 1).all()
    assert (inputs[:, -1] < 8).all()


def test_the_last_key_is_uniform_over_different_keys_and_not_by_frequency():
    # Four keys in seven slots: frequent keys would be asked for more often.
    seen = read_all(PLAIN, n=8000, vocab_size=8, seq_len=16)
    ranks, by_frequency, expected = [], 0.0, 0.0
    for row in seen:
        counts = Counter(row.keys)
        ranks += [list(counts).index(row.last)] if len(counts) == 4 else []
        by_frequency += counts[row.last] / len(row.keys)
        expected += 1 / len(counts)
    assert_uniform(np.bincount(ranks, minlength=4))
    assert abs(by_frequency - expected) / len(seen) < 0.01


def test_tokens_are_uniform_in_their_alphabets():
    inputs, _ = make_data(PLAIN, 2000, 0)
    assert_uniform(np.bincount(inputs[:, 0], minlength=8))
    assert_uniform(np.bincount(inputs[:, 1] - 8, minlength=8))
    noisy, _ = make_data(NOISY, 2000, 0, frac_noise=0.8)
    assert_uniform(np.bincount(noisy[noisy >= 16] - 16, minlength=16))


@pytest.mark.parametrize(
    ("compat", "frac", "published", "scored"),
    [
        ("mad-lab", 0.2, 0.1936, 43.6),
        ("mad-lab", 0.8, 0.7746, 7.9),
        ("fixed", 0.2, 0.1936, 43.6),
        ("fixed", 0.8, 0.7746, 7.9),
    ],
)
def test_noise_is_as_frequent_as_published(compat, frac, published, scored):
    seen = read_all(NOISY, compat=compat, frac_noise=frac)
    # 0.0003 and 0.1: half of the last digit published, and what the spared slot changes.
    assert_mean([len(row.noise_slots) / 64 for row in seen], published, 0.0003)
    assert_mean([row.scored for row in seen], scored, 0.1)


def test_mad_lab_may_spare_the_last_pair_and_we_spare_another():
    # Two slots before the last pair, nearly always noise unless spared.
    def noise(compat):
        return sum(len(r.noise_slots) for r in read_all(NOISY, "test", compat, seq_len=6, **rest))

    rest = {"frac_noise": 0.5, "noise_vocab_size": 16}
    # Ours: one of two is spared, the other is noise at 0.5.
    assert_share(noise("fixed"), N, 0.5)
    # mad-lab: a third of the rows spares none; with both noise (1/4) there is no key and the row
    # is drawn again: (2/3 * 1/2 + 1/3 * 1/2) / (1 - 1/3 * 1/4) = 6/11.
    assert_share(noise("mad-lab"), N, 6 / 11)


def test_mad_lab_scores_every_next_token_in_training_and_we_do_not():
    for task in (PLAIN, NOISY):
        inputs, targets = make_data(task, 50, 0, "train", "mad-lab")
        assert (targets[:, :-1] == inputs[:, 1:]).all()
        assert (make_data(task, 50, 0, "train")[1] == -100).any()
        assert (make_data(task, 50, 0, "test", "mad-lab")[1] == -100).any()
