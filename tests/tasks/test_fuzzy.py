"""Fuzzy recall, read back by its alphabets and compared with published figures."""

from functools import lru_cache
from math import perm

import numpy as np
import pytest

from manticore.tasks.mad import ceiling, chance, make_data
from tests.tasks.parsers import read_fuzzy
from tests.tasks.statistics import assert_mean, assert_share, assert_uniform

TASK = "fuzzy-in-context-recall"


@lru_cache(maxsize=8)
def baseline(split, compat, n=4000, vocab_size=16):
    return read_all(split, compat, n, vocab_size=vocab_size)


def read_all(split, compat, n, **settings):
    inputs, targets = make_data(TASK, n, 1, split, compat, **settings)
    how = {
        "vocab_size": settings.get("vocab_size", 16),
        "noise": settings.get("noise_vocab_size", 0),
        "multi_query": settings.get("multi_query", True),
        "scores_all": split == "train" and compat == "mad-lab",
        "orphans": compat == "mad-lab",
    }
    return [read_fuzzy(*row, **how) for row in zip(inputs, targets, strict=True)]


@pytest.mark.parametrize("compat", ["fixed", "mad-lab"])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"multi_query": False},
        {"seq_len": 13},
        {"vocab_size": 7, "k_motif_size": 1, "v_motif_size": 2, "seq_len": 33},
        {"vocab_size": 128, "k_motif_size": 4},
        {"vocab_size": 30, "noise_vocab_size": 8, "frac_noise": 0.3},
    ],
)
def test_every_example_reads_back(settings, split, compat):
    assert len(read_all(split, compat, 60, **settings)) == 60


@pytest.mark.parametrize("compat", ["fixed", "mad-lab"])
def test_test_examples_show_the_published_figures(compat):
    seen = baseline("test", compat)
    assert {len(key) for row in seen for key, _ in row.pairs} == {3}
    # Keys that come back, and with them their value's length, are counted once.
    sizes = np.bincount([len(v) for row in seen for v in dict(row.pairs).values()])[1:]
    assert np.abs(sizes / sizes.sum() - 1 / 3).max() < 0.01
    assert_mean([row.scored for row in seen], 4.35, 0.005)
    assert_mean([row.pads for row in seen], 5.0, 0.05)
    assert max(row.pads for row in seen) == 7
    assert_mean([len(row.pairs) for row in seen], 24.8, 0.05)
    assert_mean([len(dict(row.pairs)) for row in seen], 22.6, 0.05)


def test_training_keys_have_all_lengths():
    # Without the two that are the probe: which pairs end up as the last one depends on their size.
    sizes = np.bincount([len(key) for row in baseline("train", "fixed") for key, _ in row.pairs])
    first = np.bincount([len(row.pairs[0][0]) for row in baseline("train", "fixed")])
    assert_uniform(first[1:])
    assert np.abs(sizes[1:] / sizes.sum() - 1 / 3).max() < 0.01


def test_motifs_are_uniform():
    keys = [row.pairs[0][0] for row in baseline("test", "fixed")]
    for place in range(3):
        assert_uniform(np.bincount([key[place] for key in keys], minlength=7))
    assert len(set(keys)) == perm(7, 3)


def test_only_mad_lab_asks_for_keys_that_were_never_shown():
    orphans = sum(row.is_orphan for row in baseline("test", "mad-lab"))
    assert_share(orphans, 4000, 0.0234, 0.002)  # published: 117 of 5,000
    orphans = sum(row.is_orphan for row in baseline("train", "mad-lab"))
    assert_share(orphans, 4000, 0.017, 0.0005)
    assert not any(row.is_orphan for row in baseline("test", "fixed"))


def test_orphans_are_as_frequent_as_a_renewal_process_says():
    orphans = sum(row.is_orphan for row in baseline("test", "mad-lab", vocab_size=64))
    assert_share(orphans, 4000, orphan_probability(seq_len=128, n_keys=31))


def orphan_probability(seq_len, n_keys):
    """Of test examples with motifs of three, as if keys other than the probe never came back.

    Units of 4, 5 or 6 tokens follow each other. The probe is missed if no unit starts in
    [probe_at, body) and none was the probe by itself.
    """
    other = (1 - 1 / perm(n_keys, 3)) / 3  # a certain length, and not the probe
    total = 0.0
    for probe in (4, 5, 6):
        body = seq_len - probe - 6
        starts = np.zeros(body + 6)
        starts[0] = 1.0
        for at in range(1, body):
            starts[at] = other * starts[max(0, at - 6) : max(0, at - 3)].sum()
        spots = seq_len - 2 * probe
        for probe_at in range(spots):
            for at in range(min(probe_at, body)):
                ends_behind = sum(at + length >= body for length in (4, 5, 6))
                total += starts[at] * other * ends_behind / spots / 3
    return total


def test_the_ceiling_counts_the_scored_tokens_of_orphans():
    seen = baseline("test", "mad-lab")
    lost = np.array([len(row.pairs[-1][1]) if row.is_orphan else 0 for row in seen])
    scored = np.array([row.scored for row in seen])
    expected = 1 - lost.sum() / scored.sum() * (1 - chance(TASK))
    # Two independent counts of about a hundred orphans each: 0.001 and 0.001.
    assert ceiling(TASK, compat="mad-lab") == pytest.approx(expected, abs=0.004)
    assert ceiling(TASK, compat="mad-lab") < 0.998
    assert ceiling(TASK) == 1


def test_mad_lab_scores_every_next_token_in_training_and_we_do_not():
    inputs, targets = make_data(TASK, 50, 0, "train", "mad-lab")
    assert (targets[:, :-1] == inputs[:, 1:]).all()
    assert (make_data(TASK, 50, 0, "train")[1] == -100).any()
