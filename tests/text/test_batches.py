"""Batches: pure in the step, exact in proportion, every row once per epoch."""

from collections import Counter

import numpy as np
import pytest

from manticore.text.batches import BatchSource
from manticore.text.packing import PackedText


def make_pack(n_rows, first=0, seq_len=4):
    rows = np.arange(first, first + n_rows)[:, None] * np.ones((1, seq_len), int)
    return PackedText(rows.astype(np.int32), np.full_like(rows, 2, dtype=np.int32))


def make_source(weights=None, batch_size=8, seed=0, sizes=(10, 17)):
    packs = {f"k{n}": make_pack(size, 1000 * n) for n, size in enumerate(sizes)}
    return BatchSource(packs, weights, batch_size, seed)


def test_a_step_gives_the_same_batch_in_any_order_and_from_a_fresh_source():
    source = make_source()
    later = {step: source.batch_at(step) for step in (9, 0, 5, 9)}
    fresh = make_source()
    for step in range(10):
        batch = fresh.batch_at(step)
        if step in later:
            assert all(batch[key].equal(later[step][key]) for key in batch)


def test_steps_and_seeds_differ():
    source = make_source()
    assert not source.batch_at(0)["input_ids"].equal(source.batch_at(1)["input_ids"])
    assert not source.batch_at(0)["input_ids"].equal(make_source(seed=1).batch_at(0)["input_ids"])


def test_a_batch_holds_what_its_names_say():
    import torch

    batch = make_source(batch_size=6).batch_at(3)
    assert batch["input_ids"].shape == (6, 4)
    assert batch["labels"].equal(batch["input_ids"])
    assert all(value.dtype == torch.int64 for value in batch.values())
    assert (batch["input_ids"][:, 0] // 1000).tolist() == batch["kinds"].tolist()
    assert batch["bytes"].tolist() == [6] * 6


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_row_comes_once_per_epoch(batch_size):
    source = make_source(batch_size=batch_size)
    drawn = {0: [], 1: []}
    for step in range(200):
        for kind, row in source.rows_at(step):
            drawn[kind].append(row)
    for kind, size in ((0, 10), (1, 17)):
        epochs = [drawn[kind][i : i + size] for i in range(0, len(drawn[kind]) - size + 1, size)]
        assert len(epochs) > 2
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert epochs[0] != epochs[1], "each epoch has its own order"


@pytest.mark.parametrize(
    ("weights", "batch_size", "exact"),
    [
        (None, 8, (4, 4)),
        ({"k0": 3, "k1": 1}, 8, (6, 2)),
        ({"k0": 0.7, "k1": 0.3}, 10, (7, 3)),
        ({"k0": 1, "k1": 0}, 5, (5,)),
    ],
)
def test_proportions_that_divide_a_batch_are_exact_in_each(weights, batch_size, exact):
    source = make_source(weights, batch_size)
    for step in range(30):
        counts = Counter(kind for kind, _ in source.rows_at(step))
        assert tuple(counts[k] for k in range(len(exact))) == exact


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.5, 0.3, 0.2), (3.14159, 1, 0.01), (1, 998, 1)])
def test_proportions_never_drift(weights):
    source = make_source(dict(zip(("k0", "k1", "k2"), weights, strict=True)), 7, sizes=(5, 6, 7))
    counts = np.zeros(3)
    shares = np.array(weights) / sum(weights)
    for step in range(300):
        for kind, _ in source.rows_at(step):
            counts[kind] += 1
        drawn = 7 * (step + 1)
        # One row for the place in the pattern, 1/1000 for weights that need a longer one.
        assert np.abs(counts - shares * drawn).max() <= 2 + drawn / 1000


def test_epochs_count_what_was_drawn():
    source = make_source(batch_size=5)
    assert source.epochs_at(0) == {"k0": 0, "k1": 0}
    assert source.epochs_at(4) == {"k0": 1.0, "k1": 10 / 17}


def test_one_kind_and_a_batch_larger_than_its_rows_work():
    source = make_source(batch_size=25, sizes=(10,))
    counts = Counter(row for _, row in source.rows_at(0))
    assert set(counts) == set(range(10))
    assert max(counts.values()) == 3


def test_tokens_per_batch():
    assert make_source(batch_size=5).tokens_per_batch == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"weights": {"k0": 1}}, r"weights are given for \['k0'\], text for \['k0', 'k1'\]"),
        ({"weights": {"k0": -1, "k1": 2}}, "must be 0 or more"),
        ({"weights": {"k0": 0, "k1": 0}}, "not all 0"),
        ({"weights": {"k0": float("nan"), "k1": 1}}, "must be 0 or more"),
        ({"weights": {"k0": 1, "k1": 1e-6}}, "The weight of k1 is less than 1/1000"),
        ({"sizes": ()}, "no text"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_source(**arguments)


def test_rows_of_different_lengths_are_refused():
    packs = {"a": make_pack(3, seq_len=4), "b": make_pack(3, seq_len=5)}
    with pytest.raises(ValueError, match=r"differ in length: \{'a': 4, 'b': 5\}"):
        BatchSource(packs, None, 2, 0)


def test_a_negative_step_is_refused():
    with pytest.raises(ValueError, match="step=-1"):
        make_source().batch_at(-1)
