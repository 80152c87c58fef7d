"""Measures of answers and labels: accuracy, Matthews correlation, exact match."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np


def accuracy(predicted: Sequence[int], wanted: Sequence[int]) -> float:
    """Share of labels that are right."""
    return float(np.mean(np.asarray(predicted) == np.asarray(wanted)))


def matthews(predicted: Sequence[int], wanted: Sequence[int], n_labels: int) -> float:
    """Matthews correlation, for two labels or more (Gorodkin 2004, equation 8).

    1 is perfect, 0 is what any constant answer gets, -1 is all wrong (with two labels).
    """
    table = np.zeros((n_labels, n_labels))
    np.add.at(table, (np.asarray(wanted), np.asarray(predicted)), 1)
    by_wanted, by_predicted = table.sum(axis=1), table.sum(axis=0)
    total = table.sum()
    covariance = np.trace(table) * total - by_wanted @ by_predicted
    spread = (total**2 - by_wanted @ by_wanted) * (total**2 - by_predicted @ by_predicted)
    return float(covariance / math.sqrt(spread)) if spread > 0 else 0.0


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """Share of answers that equal their reference after `normalise`."""
    pairs = zip(answers, references, strict=True)
    hits = [normalise(answer) == normalise(reference) for answer, reference in pairs]
    return sum(hits) / len(hits)


def find_answer(text: str, pattern: str) -> str:
    """The answer in a generated text: the last match of the pattern's group, "" if none.

    Without a pattern the whole text is the answer.
    """
    if not pattern:
        return text
    found = re.findall(pattern, text)
    return found[-1] if found else ""


def check_pattern(pattern: str) -> None:
    """Raise unless the pattern is a regular expression with one group."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(
            f"answer_pattern={pattern!r} is no regular expression: {error}."
        ) from error
    if pattern and groups != 1:
        raise ValueError(
            f"answer_pattern={pattern!r} has {groups} groups. Put one around the answer."
        )


def normalise(answer: str) -> str:
    """Lower case, single spaces, no full stop at the end; numbers without commas, 7.0 as 7."""
    text = " ".join(answer.lower().split()).rstrip(".").strip()
    number = re.fullmatch(r"\$?(-?[\d,]*\d(?:\.\d+)?)%?", text)
    if number is None:
        return text
    value = number.group(1).replace(",", "")
    return value.rstrip("0").rstrip(".") if "." in value else value
