"""Learning rates against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from manticore.training import learning_rate


def test_warmup_rises_in_equal_steps_and_reaches_the_base():
    rates = [learning_rate(s, steps=20, base=1.0, warmup=4) for s in range(5)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_linear_falls_by_the_same_amount_and_the_last_step_still_moves():
    rates = [learning_rate(s, steps=4, base=2.0, kind="linear") for s in range(5)]
    assert rates == [2.0, 1.5, 1.0, 0.5, 0.0]


def test_cosine_is_half_way_in_the_middle():
    rate = learning_rate(6, steps=10, base=3.0, warmup=2, kind="cosine")
    assert math.isclose(rate, 1.5)
    assert math.isclose(
        learning_rate(4, steps=10, base=1.0, warmup=2, kind="cosine"),
        0.5 * (1 + math.sqrt(0.5)),
    )


def test_constant_stays():
    assert {learning_rate(s, steps=9, base=0.3, kind="constant") for s in range(9)} == {0.3}


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 3, 7, 20])
def test_rates_are_positive_and_never_above_the_base(kind: str, warmup: int):
    rates = [learning_rate(s, steps=7, base=0.1, warmup=warmup, kind=kind) for s in range(7)]
    assert all(0 < rate <= 0.1 for rate in rates)


def test_unknown_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match="Known: linear, cosine, constant"):
        learning_rate(0, steps=1, base=1.0, kind="exponential")


def test_impossible_lengths_are_refused():
    with pytest.raises(ValueError, match="steps=0"):
        learning_rate(0, steps=0, base=1.0)
