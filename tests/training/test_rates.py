"""Every row of a comparison gets the same search for a learning rate."""

from __future__ import annotations

import math

import pytest

from manticore.training.rates import choose_rates


def bowl(best):
    """Trains at once: the loss is the distance of log rates from each row's best."""
    asked = []

    def train_all(wanted):
        asked.extend(wanted)
        return [
            {"id": row, "lr": lr, "loss": abs(math.log10(lr) - math.log10(best[row]))}
            for row, lr in wanted
        ]

    return train_all, asked


def loss(result):
    return result["loss"]


def test_each_row_keeps_its_own_best_rate():
    train_all, asked = bowl({"a": 1e-3, "b": 1e-2})
    grid = [1e-4, 1e-3, 1e-2]
    found = choose_rates({"a": grid, "b": grid}, train_all, loss)
    assert [found[row]["lr"] for row in "ab"] == [1e-3, 1e-2]
    assert len(asked) == 6
    assert set(found["a"]["tried"]) == {"0.0001", "0.001", "0.01"}


def test_a_grid_grows_where_its_best_rate_lies_at_the_end_and_only_there():
    train_all, asked = bowl({"inner": 1e-3, "high": 1.0})
    grid = [1e-4, 1e-3, 1e-2]
    found = choose_rates({"inner": grid, "high": grid}, train_all, loss, extensions=5)
    assert found["high"]["lr"] == pytest.approx(1.0)
    assert [lr for row, lr in asked[6:]] == pytest.approx([1e-1, 1.0, 10.0])
    assert {row for row, _ in asked[6:]} == {"high"}


def test_growing_ends_after_its_number_and_two_rates_never_grow():
    train_all, asked = bowl({"far": 1e3, "pair": 1e3})
    choose_rates({"far": [1, 10, 100], "pair": [1, 10]}, train_all, loss, extensions=1)
    assert asked[5:] == [("far", pytest.approx(1000.0))]


def test_a_rate_that_diverges_is_never_chosen():
    def train_all(wanted):
        return [{"id": r, "lr": lr, "loss": math.inf if lr > 1e-3 else lr} for r, lr in wanted]

    assert choose_rates({"a": [1e-3, 1e-2]}, train_all, loss)["a"]["lr"] == 1e-3
