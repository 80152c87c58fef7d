"""Confidence intervals over seeds: Student's t for a mean, and a bootstrap for anything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy

from manticore.seeds import numpy_generator

LEVEL = 0.95


def t_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """The interval of a mean when the spread is estimated from the same values.

    Args:
        values: one number per seed.

    Returns:
        (low, high), or None for fewer than two values: one number says nothing of its spread.
    """
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = t_quantile(0.5 + level / 2, n - 1) * deviation / math.sqrt(n)
    return mean - half, mean + half


def bootstrap_interval(
    size: int,
    statistic: Callable[[numpy.ndarray], float],
    seed: int = 0,
    draws: int = 2000,
    level: float = LEVEL,
) -> tuple[float, float] | None:
    """The percentile interval of a statistic of `size` units drawn with replacement.

    Args:
        statistic: from an index array of length `size` to a number; NaN draws are left out (a rank
            correlation has no value when all ranks tie).
    """
    generator = numpy_generator(seed, "bootstrap")
    found = [statistic(generator.integers(0, size, size)) for _ in range(draws)]
    finite = numpy.array([value for value in found if math.isfinite(value)])
    if len(finite) < draws / 2:
        return None
    low, high = numpy.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution with a whole number of degrees of freedom."""
    if not 0.5 <= probability < 1:
        raise ValueError(f"probability={probability} is not in [0.5, 1).")
    low, high = 0.0, 1.0
    while t_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def t_cdf(t: float, degrees: int) -> float:
    """The distribution function, by its finite sums (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine = math.cos(angle)
    if degrees % 2:
        term, total = cosine, cosine if degrees > 1 else 0.0
        for k in range(3, degrees - 1, 2):
            term *= (k - 1) / k * cosine**2
            total += term
        inside = 2 / math.pi * (angle + math.sin(angle) * total)
    else:
        term = total = 1.0
        for k in range(2, degrees - 1, 2):
            term *= (k - 1) / k * cosine**2
            total += term
        inside = math.sin(angle) * total
    return (1 + inside) / 2
