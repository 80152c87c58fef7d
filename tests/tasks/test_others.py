"""The tasks that are not in the MAD score: multi-query recall after Zoology, state tracking."""

from functools import reduce
from itertools import permutations

import numpy as np
import pytest

from manticore.tasks.mad import MAD_TASKS, TASKS, chance, make_data, task_settings
from manticore.tasks.state_tracking import composition_table
from tests.tasks.parsers import read_mqar
from tests.tasks.statistics import assert_uniform


def test_none_of_them_is_in_the_mad_score():
    assert set(TASKS) - set(MAD_TASKS) == {"mqar", "parity", "modular-addition", "s5"}
    assert len(MAD_TASKS) == 6


@pytest.mark.parametrize("random_fill", [True, False])
@pytest.mark.parametrize("sizes", [(8192, 64, 4), (65, 64, 16), (130, 128, 8), (9, 8, 1)])
def test_every_mqar_example_reads_back(sizes, random_fill):
    vocab_size, seq_len, pairs = sizes
    settings = {"vocab_size": vocab_size, "seq_len": seq_len, "num_kv_pairs": pairs}
    for split in ("train", "test"):
        rows = make_data("mqar", 50, 0, split, random_non_queries=random_fill, **settings)
        assert rows[0].shape == (50, seq_len)
        for row in zip(*rows, strict=True):
            read_mqar(*row, vocab_size=vocab_size, pairs=pairs, random_fill=random_fill)


def test_mqar_asks_at_distances_of_a_power_law():
    inputs, targets = make_data("mqar", 4000, 0, num_kv_pairs=1, seq_len=22, power_a=0.5)
    gaps = (np.nonzero(targets != -100)[1] - 2) // 2
    law = np.arange(1, 11) ** -0.5
    expected = 4000 * law / law.sum()
    seen = np.bincount(gaps, minlength=10)
    chi_square = ((seen - expected) ** 2 / expected).sum()
    assert chi_square < 9 + 4 * np.sqrt(18)
    uniform = make_data("mqar", 4000, 0, num_kv_pairs=1, seq_len=22, power_a=1.0)[1]
    assert_uniform(np.bincount((np.nonzero(uniform != -100)[1] - 2) // 2, minlength=10))
    assert (inputs[:, 0] < 4096).all()


def test_parity_and_modular_addition_are_running_sums():
    for task, modulus, settings in [
        ("parity", 2, {}),
        ("modular-addition", 7, {}),
        ("modular-addition", 60, {"modulus": 60}),
    ]:
        inputs, targets = make_data(task, 700, 0, "valid", seq_len=33, **settings)
        assert_uniform(np.bincount(inputs.ravel(), minlength=modulus))
        for row, found in zip(inputs[:50].tolist(), targets[:50].tolist(), strict=True):
            assert found == [sum(row[: t + 1]) % modulus for t in range(33)]
        assert chance(task, **settings) == 1 / modulus


def test_s5_moves_five_things():
    inputs, targets = make_data("s5", 300, 0, "test", seq_len=20)
    elements = list(permutations("abcde"))
    assert len(elements) == task_settings("s5").vocab_size
    for row, found in zip(inputs.tolist(), targets.tolist(), strict=True):
        images = list("abcde")
        for token, target in zip(row, found, strict=True):
            moved = dict(zip("abcde", elements[token], strict=True))
            images = [moved[image] for image in images]
            assert tuple(images) == elements[target]
    assert_uniform(np.bincount(targets.ravel(), minlength=120))


def test_the_table_of_s5_is_a_group_that_does_not_commute():
    table = composition_table()
    assert (np.sort(table, axis=0) == np.arange(120)[:, None]).all()
    assert (np.sort(table, axis=1) == np.arange(120)).all()
    assert (table[0] == np.arange(120)).all()
    assert (table != table.T).any()
    a, b, c = np.random.default_rng(0).integers(120, size=(3, 500))
    assert (table[table[a, b], c] == table[a, table[b, c]]).all()
    # Orders of the elements: 1 of order 1, 25 of 2, 20 of 3, 30 of 4, 24 of 5, 20 of 6.
    orders = [
        next(n for n in range(1, 7) if reduce(lambda x, _, g=g: table[g, x], range(n), 0) == 0)
        for g in range(120)
    ]
    assert np.bincount(orders).tolist() == [0, 1, 25, 20, 30, 24, 20]
