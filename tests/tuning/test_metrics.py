"""Measures against scikit-learn and against hand."""

from __future__ import annotations

import numpy as np
import pytest

from manticore.tuning.metrics import (
    accuracy,
    check_pattern,
    exact_match,
    find_answer,
    matthews,
    normalise,
)


def test_matthews_by_hand() -> None:
    # 6 of 7 and 2 of 3 are right: (6 * 2 - 1 * 1) / sqrt(7 * 3 * 7 * 3)
    wanted = [1] * 7 + [0] * 3
    predicted = [1] * 6 + [0] + [0, 0, 1]
    assert matthews(predicted, wanted, 2) == pytest.approx(11 / 21)
    assert accuracy(predicted, wanted) == pytest.approx(0.8)
    assert matthews([1, 1, 1], [0, 1, 1], 2) == 0.0
    assert matthews([1, 0, 0], [0, 1, 1], 2) == pytest.approx(-1.0)


@pytest.mark.parametrize("n_labels", [2, 3, 7])
def test_matthews_and_accuracy_equal_scikit_learns(n_labels: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(n_labels)
    for _ in range(20):
        wanted = generator.integers(n_labels, size=50)
        predicted = np.where(
            generator.random(50) < 0.5, wanted, generator.integers(n_labels, size=50)
        )
        found = matthews(list(predicted), list(wanted), n_labels)
        assert found == pytest.approx(metrics.matthews_corrcoef(wanted, predicted), abs=1e-12)
        assert accuracy(list(predicted), list(wanted)) == metrics.accuracy_score(wanted, predicted)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (" The  Answer. ", "the answer"),
        ("$1,200", "1200"),
        ("7.0", "7"),
        ("7.50", "7.5"),
        ("50%", "50"),
        ("-3", "-3"),
        ("1,2 and 3", "1,2 and 3"),
        ("100", "100"),
    ],
)
def test_answers_are_compared_without_spelling(given: str, wanted: str) -> None:
    assert normalise(given) == wanted


def test_exact_match_counts_whole_answers() -> None:
    assert exact_match(["4", "five", "6 apples", "7.00"], ["4", "Five.", "6", "7"]) == 0.75


def test_the_last_match_of_a_pattern_is_the_answer() -> None:
    text = "First #### 3, no: #### 12"
    assert find_answer(text, r"####\s*(\d+)") == "12"
    assert find_answer("nothing", r"####\s*(\d+)") == ""
    assert find_answer("all of it", "") == "all of it"


def test_a_pattern_needs_one_group_and_has_to_be_one() -> None:
    check_pattern(r"(\d+)")
    check_pattern("")
    with pytest.raises(ValueError, match=r"has 2 groups\. Put one around the answer"):
        check_pattern(r"(\d)(\d)")
    with pytest.raises(ValueError, match="has 0 groups"):
        check_pattern(r"\d")
    with pytest.raises(ValueError, match="no regular expression"):
        check_pattern("(")
