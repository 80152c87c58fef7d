"""What others printed for MAD, beside our scores: the rows, and how alike the two rank."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manticore.evaluation.mad.ranks import RankAgreement, rank_agreement
from manticore.evaluation.mad.score_types import ArchitectureScore
from manticore.evaluation.mad.settings import BASELINES, RECALL_TASKS

TABLES = Path(__file__).parent / "mad_published.json"
MERGED = "recall"
"""Column of papers that count recall and noisy recall as one task."""
ALL_SOURCES = "mean of all sources"


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One architecture as somebody printed it; accuracies from 0 to 1."""

    source: str
    where: str
    model: str
    architecture: str | None
    """Our preset of the same kind, None if there is none."""
    tasks: Mapping[str, float]
    """By our names of the tasks; a merged recall column stands for both."""
    columns: int
    """Over how many columns the printed average goes."""
    printed: float

    @property
    def average6(self) -> float | None:
        """The mean over six tasks, recomputed where five columns were averaged."""
        if set(self.tasks) == set(BASELINES):
            return sum(self.tasks.values()) / len(BASELINES)
        return self.printed if self.columns == len(BASELINES) else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How our scores and published ones rank the same architectures."""

    source: str
    of: str
    """A task, or "average of 6"."""
    names: tuple[str, ...]
    """Architectures that both have."""
    agreement: RankAgreement | None
    """None for fewer than three architectures."""


def load_published(path: Path = TABLES) -> list[PublishedRow]:
    """The published rows, in the order of their sources."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return [
        PublishedRow(
            source=source["title"],
            where=source["where"],
            model=row["model"],
            architecture=row["architecture"],
            tasks=_tasks(row["tasks"]),
            columns=source["columns"],
            printed=row["printed"] / 100,
        )
        for source in document["sources"]
        for row in source["rows"]
    ]


def compare(
    scores: Iterable[ArchitectureScore],
    rows: Sequence[PublishedRow],
    only: Sequence[str] | None = None,
) -> list[Comparison]:
    """Rank agreement with every source, with the mean of all, and task by task with that mean.

    Args:
        scores: of one protocol.
        only: names of architectures to compare; None: all that both sides have.
    """
    ours = {one.name: one for one in scores if only is None or one.name in only}
    averages = {name: one.average6.mean for name, one in ours.items()}
    sources = list(dict.fromkeys(row.source for row in rows))
    found = [
        _compare(source, "average of 6", averages, _mean_of(rows, "average6", source))
        for source in sources
    ]
    found.append(_compare(ALL_SOURCES, "average of 6", averages, _mean_of(rows, "average6")))
    for task in BASELINES:
        measured = {
            name: one.tasks[task].accuracy.mean for name, one in ours.items() if task in one.tasks
        }
        found.append(_compare(ALL_SOURCES, task, measured, _mean_of(rows, task)))
    return [one for one in found if len(one.names) > 1]


def _compare(
    source: str, of: str, ours: Mapping[str, float | None], theirs: Mapping[str, float]
) -> Comparison:
    known = {name: value for name, value in ours.items() if value is not None and name in theirs}
    names = tuple(sorted(known))
    agreement = rank_agreement([known[n] for n in names], [theirs[n] for n in names])
    return Comparison(source=source, of=of, names=names, agreement=agreement)


def _mean_of(rows: Sequence[PublishedRow], of: str, source: str | None = None) -> dict[str, float]:
    """A published number of each architecture, its mean over the sources that have it."""
    values: dict[str, list[float]] = {}
    for row in rows:
        value = row.average6 if of == "average6" else row.tasks.get(of)
        if row.architecture and value is not None and source in (None, row.source):
            values.setdefault(row.architecture, []).append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def _tasks(given: Mapping[str, Any]) -> dict[str, float]:
    tasks: dict[str, float] = {}
    for column, value in given.items():
        for task in RECALL_TASKS if column == MERGED else (column,):
            tasks[task] = value / 100
    return tasks
