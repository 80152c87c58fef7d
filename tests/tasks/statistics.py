"""Comparing samples with figures and with each other."""

from collections import Counter

import numpy as np


def assert_mean(sample, expected, rounding=0.0):
    """The mean lies within 4 standard errors of a figure, beyond the figure's own rounding."""
    sample = np.asarray(sample, dtype=float)
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    assert abs(sample.mean() - expected) <= 4 * error + rounding, (sample.mean(), expected, error)


def assert_share(hits, total, expected, rounding=0.0):
    """A share lies within 4 standard errors of a probability."""
    error = np.sqrt(expected * (1 - expected) / total)
    assert abs(hits / total - expected) <= 4 * error + rounding, (hits / total, expected, error)


def deviation(first, second):
    """How far two samples of rows are apart: standardised chi-square of two samples.

    Rows seen fewer than 20 times in both together are one class. About N(0, 1) if the laws agree.
    """
    counts = [Counter(map(bytes, sample)) for sample in (first, second)]
    sizes = [len(first), len(second)]
    table, rest = [], np.zeros(2)
    for row in counts[0].keys() | counts[1].keys():
        pair = np.array([counts[0][row], counts[1][row]], dtype=float)
        if pair.sum() < 20:
            rest += pair
        else:
            table.append(pair)
    if rest.sum() >= 20:
        table.append(rest)
    seen = np.array(table)
    expected = seen.sum(axis=1, keepdims=True) * np.array(sizes) / sum(sizes)
    freedom = len(seen) - 1
    assert freedom > 0
    return (((seen - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


def assert_uniform(counts):
    """Counts agree with a uniform law: chi-square within 4 of its standard deviations."""
    counts = np.asarray(counts, dtype=float)
    expected = counts.mean()
    freedom = len(counts) - 1
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - freedom) <= 4 * np.sqrt(2 * freedom), (chi_square, freedom)
