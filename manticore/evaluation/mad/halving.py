"""Successive halving over a sweep: every rate and decay for a few steps, the better ones for all.

Each rung is a training of its own, with its whole schedule in fewer steps, so its trials are
records like any other and the survivors' are the very records of an exhaustive sweep. Each seed
chooses for itself, by validation. (Jamieson and Talwalkar, 2016, arXiv:1502.07943, with fresh
starts.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manticore.evaluation.mad.choice import preference
from manticore.evaluation.mad.entry import Entry
from manticore.evaluation.mad.plan import Point, plan_trials
from manticore.evaluation.mad.protocol import Protocol
from manticore.evaluation.mad.results import Record, ResultsFolder
from manticore.evaluation.mad.score import is_whole
from manticore.evaluation.mad.sweep import run_sweep

Rungs = tuple[tuple[float, int], ...]
"""(share of the steps, how many points go on), from the first rung to the last."""


@dataclass(frozen=True, kw_only=True)
class HalvingLedger:
    """Steps that were taken, and those that an exhaustive sweep plans."""

    steps: int
    exhaustive: int

    @property
    def saved(self) -> float:
        """Share of the exhaustive sweep's steps that was not needed."""
        return 1 - self.steps / self.exhaustive

    def line(self) -> str:
        """For people."""
        return (
            f"halving: at most {self.steps:,} steps instead of {self.exhaustive:,}, "
            f"{100 * self.saved:.0f} % saved"
        )


def default_rungs(points: int) -> Rungs:
    """Screen at an eighth and a quarter of the steps; few points need one rung only."""
    if points < 2:
        return ()
    return ((1 / 4, 1),) if points < 4 else ((1 / 8, -(-points // 2)), (1 / 4, 1))


def run_halving(
    entries: Sequence[Entry],
    protocol: Protocol,
    seeds: Sequence[int],
    folder: ResultsFolder,
    rungs: Rungs | None = None,
    **options: Any,
) -> tuple[list[Record], HalvingLedger]:
    """Train by successive halving; resumable like any sweep.

    Args:
        options: of `run_sweep`.

    Returns:
        The records of all rungs and of the whole trainings, and what was saved.
    """
    rungs = default_rungs(len(protocol.grid)) if rungs is None else rungs
    exhaustive = plan_trials(entries, protocol, seeds)
    alive: Mapping[tuple[str, str], list[Point]] | None = None
    records: list[Record] = []
    steps = 0
    for share, keep in (*rungs, (1.0, 0)):
        planned = plan_trials(entries, protocol, seeds, share, alive)
        found = run_sweep(planned, folder, **options)
        steps += sum(one.steps for one in planned)
        records += found
        alive = survivors(found, keep, protocol)
    return records, HalvingLedger(steps=steps, exhaustive=sum(one.steps for one in exhaustive))


def survivors(
    records: Sequence[Record], keep: int, protocol: Protocol
) -> dict[tuple[str, str], list[Point]]:
    """The points that go on: for each architecture, setting and seed the best `keep`."""
    places: dict[tuple[str, str, int], list[Record]] = defaultdict(list)
    for record in records:
        places[record["architecture"], record["setting"], record["settings"]["seed"]].append(record)
    alive: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for (name, label, seed), found in places.items():
        best = sorted(found, key=lambda record: preference(record, protocol), reverse=True)
        for record in best[:keep]:
            point = record["settings"]["lr"], record["settings"]["weight_decay"], seed
            alive[name, label].append(point)
    return alive


def replay(
    records: Sequence[Record], protocol: Protocol, rungs: Rungs | None = None
) -> tuple[list[Record], int] | None:
    """What halving would have recorded, from a folder that has its rungs and the whole grid.

    Returns:
        The records that it would have made, and the steps that they took; None when a rung or a
        whole training that it needs is not among the records.
    """
    rungs = default_rungs(len(protocol.grid)) if rungs is None else rungs
    by_share: dict[float, list[Record]] = defaultdict(list)
    for record in records:
        whole = record["whole_steps"]
        for share, _ in (*rungs, (1.0, 0)):
            if record["settings"]["training"]["steps"] == max(1, round(share * whole)):
                by_share[share].append(record)
    made: list[Record] = []
    alive: dict[tuple[str, str], list[Point]] | None = None
    wanted = len([r for r in records if is_whole(r)])
    for share, keep in (*rungs, (1.0, 0)):
        found = [r for r in by_share[share] if alive is None or _point(r) in alive[_place(r)]]
        if len(found) < wanted:
            return None
        made += found
        alive = survivors(found, keep, protocol)
        wanted = sum(map(len, alive.values()))
    return made, sum(record["result"]["steps"] for record in made)


def _place(record: Record) -> tuple[str, str]:
    return record["architecture"], record["setting"]


def _point(record: Record) -> Point:
    settings = record["settings"]
    return settings["lr"], settings["weight_decay"], settings["seed"]
