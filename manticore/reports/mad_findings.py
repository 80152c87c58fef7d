"""What a board says in words: who leads, by how much, and whether the seeds bear it out."""

from __future__ import annotations

from collections.abc import Sequence

from manticore.evaluation.mad.intervals import t_interval
from manticore.evaluation.mad.score_types import ArchitectureScore


def findings(scores: Sequence[ArchitectureScore]) -> list[str]:
    """Sentences about the architectures of one protocol, the best first."""
    ranked = [one for one in scores if one.average6.mean is not None]
    if not ranked:
        return ["No architecture has all six tasks yet, so there is no overall score."]
    said = [f"{_named(ranked[0])} leads."]
    if len(ranked) > 1:
        said[0] = f"{_named(ranked[0])} leads, {_lead(ranked[0], ranked[1])}."
    striped = next((one for one in ranked if len(one.token_mixers) > 1), None)
    pure = next((one for one in ranked if len(one.token_mixers) == 1), None)
    if striped and pure:
        said.append(_striping(striped, pure))
    broken = [one.name for one in scores if one.missing]
    if broken:
        said.append(f"Not all trainings are done for {', '.join(broken)}.")
    return said


def difference(a: ArchitectureScore, b: ArchitectureScore) -> tuple[float, tuple[float, float]]:
    """Mean difference of two averages of six and its 95 % interval, seeds paired.

    Seeds pair the order of the examples. Without two common seeds the interval is infinite.
    """
    first, second = a.average6.per_seed, b.average6.per_seed
    values = [first[seed] - second[seed] for seed in first if seed in second]
    whole = (float("-inf"), float("inf"))
    if not values:
        return (a.average6.mean or 0.0) - (b.average6.mean or 0.0), whole
    return sum(values) / len(values), t_interval(values) or whole


def _lead(first: ArchitectureScore, second: ArchitectureScore) -> str:
    by, (low, high) = difference(first, second)
    sure = "more than seeds explain" if low > 0 else "which seeds alone could explain"
    return f"{100 * by:.1f} points before {second.name} ({_range(low, high)}), {sure}"


def _striping(striped: ArchitectureScore, pure: ArchitectureScore) -> str:
    by, (low, high) = difference(striped, pure)
    if low > 0:
        verdict = "striped architectures lead, as in Poli et al. (2024)"
    elif high < 0:
        verdict = "striped architectures do not lead here, unlike in Poli et al. (2024)"
    else:
        verdict = "these seeds do not decide whether striping leads"
    return (
        f"Best with several token mixers: {_named(striped)}; best with one: {_named(pure)}; "
        f"difference {100 * by:+.1f} ({_range(low, high)}): {verdict}."
    )


def _range(low: float, high: float) -> str:
    if high == float("inf"):
        return "one seed, no interval"
    return f"95 %: {_percent(low)} to {_percent(high)}"


def _percent(value: float) -> str:
    return f"{100 * value:z.1f}"  # z: what rounds to zero has no sign


def _named(one: ArchitectureScore) -> str:
    mean, interval = one.average6.mean, one.average6.interval
    assert mean is not None
    half = f" ± {100 * (interval[1] - mean):.1f}" if interval else ""
    return f"{one.name} ({100 * mean:.1f}{half})"
