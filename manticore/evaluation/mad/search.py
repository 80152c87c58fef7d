"""Search for an architecture: score many layouts cheaply, the better ones well, keep the front.

Successive halving over architectures: each rung trains what is left with more of the protocol, and
only the last one with all seeds, rates and steps. What goes on is first what nobody beats in score,
parameters, state and FLOPs at once, then what scores best. Screening reads validation only; the
test split is read in the last rung.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manticore.evaluation.mad.choice import preference
from manticore.evaluation.mad.entry import Entry
from manticore.evaluation.mad.pareto import pareto_front
from manticore.evaluation.mad.plan import plan_trials
from manticore.evaluation.mad.protocol import Protocol
from manticore.evaluation.mad.results import Record, ResultsFolder
from manticore.evaluation.mad.score import score
from manticore.evaluation.mad.score_types import ArchitectureScore
from manticore.evaluation.mad.sweep import run_sweep

COSTS = ("parameters", "state", "flops_per_token")
UNKNOWN = 1e30
"""Stands for a cost that nobody wrote down, so that it never helps."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One pass over the candidates that are left."""

    share: float
    """Of the protocol's steps."""
    points: int
    """Rates and decays tried, of the protocol's grid, from its middle outwards."""
    keep: float
    """Share of the candidates that go on."""


RUNGS = (Rung(share=1 / 8, points=1, keep=0.5), Rung(share=1 / 4, points=1, keep=0.4))


@dataclass(frozen=True, kw_only=True)
class SearchStep:
    """What a rung found."""

    rung: Rung
    scores: dict[str, float]
    """Screening score of each candidate: normalised validation accuracy, mean over tasks."""
    kept: tuple[str, ...]
    steps: int


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search leaves."""

    scores: list[ArchitectureScore]
    """Of the candidates that were measured whole, the best first."""
    front: list[str]
    """Those that no other one dominates in score, parameters, state and FLOPs."""
    history: list[SearchStep]
    steps: int
    """Of all rungs and the final measurement."""
    exhaustive: int
    """Steps of measuring every candidate whole."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for search.json."""
        found = dataclasses.asdict(self)
        for one, plain in zip(self.scores, found["scores"], strict=True):
            plain["overall"] = one.overall
        return found


def search_layouts(
    entries: Sequence[Entry],
    protocol: Protocol,
    seeds: Sequence[int],
    folder: ResultsFolder,
    rungs: Sequence[Rung] = RUNGS,
    **options: Any,
) -> SearchResult:
    """Find the Pareto front of score against parameters, state and FLOPs.

    Args:
        folder: open; everything that is trained is a record there, so a killed search goes on.
        options: of `run_sweep`.
    """
    alive, history, steps = list(entries), [], 0
    for rung in rungs:
        few = _fewer_points(protocol, rung.points)
        planned = plan_trials(alive, few, seeds[:1], rung.share)
        records = run_sweep(planned, folder, **options)
        scores = screening_scores(records, few)
        kept = kept_names(scores, alive, rung.keep)
        steps += sum(one.steps for one in planned)
        history.append(
            SearchStep(
                rung=rung, scores=scores, kept=tuple(kept), steps=sum(p.steps for p in planned)
            )
        )
        alive = [entry for entry in alive if entry.name in kept]
    planned = plan_trials(alive, protocol, seeds)
    measured = score(run_sweep(planned, folder, **options))
    exhaustive = plan_trials(entries, protocol, seeds)
    return SearchResult(
        scores=measured,
        front=front_of(measured),
        history=history,
        steps=steps + sum(one.steps for one in planned),
        exhaustive=sum(one.steps for one in exhaustive),
    )


def screening_scores(records: Sequence[Record], rules: Protocol) -> dict[str, float]:
    """Normalised validation accuracy: mean over a task's settings, then over tasks."""
    best: dict[tuple[str, str, str], Record] = {}
    for record in records:
        place = record["architecture"], record["settings"]["task"], record["setting"]
        if place not in best or preference(record, rules) > preference(best[place], rules):
            best[place] = record
    by_task: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (name, task, _), record in best.items():
        by_task[name][task].append(_normalised(record))
    return {
        name: sum(sum(v) / len(v) for v in tasks.values()) / len(tasks)
        for name, tasks in by_task.items()
    }


def kept_names(scores: dict[str, float], entries: Sequence[Entry], keep: float) -> list[str]:
    """Who goes on: of the front as many as fit, best first, then the best of the others."""
    costs = {entry.name: _costs(entry.costs()) for entry in entries}
    ranked = sorted(scores, key=lambda name: -scores[name])
    order = list(dict.fromkeys([*pareto_front(scores, costs), *ranked]))
    return order[: count_kept(len(order), keep)]


def count_kept(candidates: int, keep: float) -> int:
    """How many go on."""
    return max(1, round(keep * candidates))


def search_steps(
    entries: Sequence[Entry],
    protocol: Protocol,
    seeds: Sequence[int],
    rungs: Sequence[Rung] = RUNGS,
) -> int:
    """Steps of a whole search; who goes on does not matter, as all train for as many."""
    alive, steps = list(entries), 0
    for rung in rungs:
        planned = plan_trials(alive, _fewer_points(protocol, rung.points), seeds[:1], rung.share)
        steps += sum(one.steps for one in planned)
        alive = alive[: count_kept(len(alive), rung.keep)]
    return steps + sum(one.steps for one in plan_trials(alive, protocol, seeds))


def front_of(scores: Sequence[ArchitectureScore]) -> list[str]:
    """The Pareto front of measured architectures."""
    means = {one.name: mean for one in scores if (mean := one.overall) is not None}
    costs = {one.name: _costs(one.costs) for one in scores}
    return pareto_front(means, costs)


def _costs(costs: Mapping[str, int | None]) -> list[float]:
    values = [costs[key] for key in COSTS]
    return [UNKNOWN if value is None else float(value) for value in values]


def _normalised(record: Record) -> float:
    result = record["result"]
    if result["valid"] is None:
        return 0.0
    span = result["ceiling"] - result["chance"]
    return float((result["valid"]["token_accuracy"] - result["chance"]) / span)


def _fewer_points(protocol: Protocol, points: int) -> Protocol:
    """The middle rates of the grid, without decay."""
    middle = (len(protocol.rates) - 1) / 2
    order = sorted(range(len(protocol.rates)), key=lambda i: abs(i - middle))
    rates = tuple(protocol.rates[i] for i in order[:points])
    return dataclasses.replace(protocol, rates=rates, decays=(min(protocol.decays),))
