"""Every row of a comparison gets the same search for a learning rate."""

from __future__ import annotations

import math

import pytest

from manticore.training import NonFiniteLossError
from manticore.training.rates import (
    check_converged,
    choose_rates,
    diverged,
    divergences,
    finite_or_worst,
)


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


def cliff(edge):
    """Trains at once: below the edge the loss falls with the rate, above it there is none."""

    def train_all(wanted):
        results = []
        for row, lr in wanted:
            names = {"id": row, "label": f"Row {row}", "lr": lr, "seed": 0}
            if lr < edge[row]:
                results.append({**names, "loss": -lr})
            else:
                error = NonFiniteLossError("train", 7, "loss", 2.5, None)
                results.append({**names, "loss": math.nan, **diverged(error)})
        return results

    return train_all


def badness(result):
    return result["loss"] if math.isfinite(result["loss"]) else math.inf


def test_a_rate_that_diverges_is_the_worst_and_is_told_with_its_step():
    found = choose_rates({"a": [1e-3, 1e-2, 1e6]}, cliff({"a": 0.1}), badness, extensions=2)
    assert found["a"]["lr"] == 1e-2
    assert math.isinf(found["a"]["tried"]["1e+06"])
    assert found["a"]["diverged_at"] == {"1e+06": 7}
    assert divergences(found.values()) == ["Row a diverged at learning rate 1e+06 (step 7)."]


def test_where_all_rates_diverge_the_grid_grows_downwards_before_it_fails():
    grid = {"a": [1.0, 10.0, 100.0]}
    assert choose_rates(grid, cliff({"a": 0.5}), badness, extensions=1)["a"]["lr"] == 0.1
    assert choose_rates(grid, cliff({"a": 0.02}), badness, extensions=2)["a"][
        "lr"
    ] == pytest.approx(0.01)
    with pytest.raises(ValueError, match=r"a diverged at every .* \(0\.1, 1, 10, 100\).* step 7"):
        choose_rates(grid, cliff({"a": 0.05}), badness, extensions=1)


@pytest.mark.parametrize("lost", ["nan", "inf", "-inf", math.nan, math.inf])
def test_what_is_not_a_number_is_worse_than_any_other(lost):
    assert finite_or_worst(lost) == math.inf
    assert finite_or_worst("2.5") == 2.5


def test_of_rates_that_do_equally_well_the_lowest_is_chosen_and_they_are_told_in_order():
    def flat(wanted):
        return [{"id": row, "lr": lr, "loss": 1.0} for row, lr in wanted]

    found = choose_rates({"a": [1.0, 10.0, 100.0]}, flat, badness, extensions=2)["a"]
    assert found["lr"] == pytest.approx(0.01)
    assert list(found["tried"]) == ["0.01", "0.1", "1", "10", "100"]


def test_another_seed_that_diverges_at_the_chosen_rate_is_told():
    fine, bad = cliff({"a": 1.0})([("a", 0.1), ("a", 10.0)])
    check_converged([fine])
    with pytest.raises(ValueError, match="a was best at learning rate 10, but diverged"):
        check_converged([fine, bad])
