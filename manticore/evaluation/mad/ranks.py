"""Rank correlations: do two lists of scores order the same architectures alike?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy

from manticore.evaluation.mad.intervals import bootstrap_interval

EXACT_UP_TO = 8
"""Items up to which the p-value counts every order (8! = 40,320)."""


@dataclass(frozen=True, kw_only=True)
class RankAgreement:
    """How alike two lists of scores rank the same items."""

    n: int
    """Items that both lists have."""
    spearman: float
    """Correlation of the ranks, ties at their mean rank."""
    kendall: float
    """Kendall's tau-b: concordant minus discordant pairs, corrected for ties."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval of Spearman's, over items. Wide when items are few, as here."""
    p_value: float | None
    """Share of all orders that agree at least as well by Spearman; None above 8 items."""

    def record(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def rank_agreement(ours: Sequence[float], theirs: Sequence[float]) -> RankAgreement | None:
    """Compare two lists; None for fewer than three items, where a rank correlation says nothing."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} scores cannot be ranked against {len(theirs)}.")
    if len(ours) < 3:
        return None
    a, b = numpy.asarray(ours, float), numpy.asarray(theirs, float)
    found = spearman(a, b)
    return RankAgreement(
        n=len(a),
        spearman=found,
        kendall=kendall(a, b),
        interval=bootstrap_interval(len(a), lambda chosen: spearman(a[chosen], b[chosen])),
        p_value=_exact_p(a, b, found) if len(a) <= EXACT_UP_TO else None,
    )


def spearman(a: Sequence[float] | numpy.ndarray, b: Sequence[float] | numpy.ndarray) -> float:
    """Spearman's rho; NaN when one list has no order at all."""
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    norm = math.sqrt(float((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / norm if norm else math.nan


def kendall(a: Sequence[float] | numpy.ndarray, b: Sequence[float] | numpy.ndarray) -> float:
    """Kendall's tau-b; NaN when one list has no order at all."""
    x, y = numpy.asarray(a, float), numpy.asarray(b, float)
    pairs = numpy.triu_indices(len(x), 1)
    first, second = (numpy.sign(v[pairs[0]] - v[pairs[1]]) for v in (x, y))
    norm = math.sqrt(float((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / norm if norm else math.nan


def ranks(values: Sequence[float] | numpy.ndarray) -> numpy.ndarray:
    """Rank 1 for the lowest; ties share their mean rank."""
    v = numpy.asarray(values, float)
    below = (v[None, :] < v[:, None]).sum(1)
    equal = (v[None, :] == v[:, None]).sum(1)
    return below + (equal + 1) / 2


def _exact_p(a: numpy.ndarray, b: numpy.ndarray, found: float) -> float | None:
    if not math.isfinite(found):
        return None
    x, y = ranks(a), ranks(b)
    orders = numpy.array(list(itertools.permutations(y)))
    centred = x - x.mean()
    # Only the product of the ranks depends on the order. The margin is for rounding.
    return float(((orders @ centred) >= (y @ centred) - 1e-9).mean())
