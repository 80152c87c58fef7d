"""What a score is: one architecture under one protocol, with its tasks and intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manticore.evaluation.mad.intervals import t_interval
from manticore.evaluation.mad.settings import BASELINES


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds."""

    mean: float | None
    """None where something is missing for every seed."""
    interval: tuple[float, float] | None
    """95 %, Student's t over seeds; None for a single seed."""
    per_seed: Mapping[int, float]
    """Seeds for which nothing is missing."""


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One architecture on one task."""

    accuracy: Estimate
    """The protocol's accuracy on the test split, mean over settings."""
    normalised: Estimate
    """(accuracy - chance) / (ceiling - chance), mean over settings."""
    others: Mapping[str, float | None]
    """Other measures of the same chosen trials, means over settings and seeds."""
    settings: Mapping[str, Estimate]
    """Accuracy of each setting."""


@dataclass(frozen=True, kw_only=True)
class ArchitectureScore:
    """One architecture under one protocol."""

    name: str
    protocol: Mapping[str, Any]
    """Profile, versions and compatibility."""
    tasks: Mapping[str, TaskScore]
    average6: Estimate
    """Mean over the six tasks."""
    average5: Estimate
    """Mean over five: recall and noisy recall count as one."""
    normalised6: Estimate
    """Mean over the six normalised scores."""
    seeds: tuple[int, ...]
    costs: Mapping[str, int | None]
    """Parameters, mixing state and FLOPs per token, at vocabulary 16 and 128 tokens."""
    layers: tuple[Mapping[str, Any], ...]
    token_mixers: tuple[str, ...]
    """The different token mixers; more than one makes a striped architecture."""
    trials: int
    """Whole trainings recorded."""
    training_flops: float | None
    """Of all recorded trainings, screening included."""
    seconds: float
    """Of all recorded trainings, on the machine that made them."""
    diverged: tuple[str, ...] = ()
    """Trainings whose loss stopped being a number."""
    missing: tuple[str, ...] = ()
    """Trainings that the protocol has and the records have not."""

    @property
    def overall(self) -> float | None:
        """The average of six, or over fewer tasks if only some were asked for."""
        if len(self.tasks) == len(BASELINES):
            return self.average6.mean
        return full_mean([task.accuracy.mean for task in self.tasks.values()])

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)


def seed_estimate(per_seed: Mapping[int, float | None]) -> Estimate:
    """Mean and interval over the seeds that are known."""
    known = {seed: value for seed, value in per_seed.items() if value is not None}
    values = list(known.values())
    return Estimate(mean=full_mean(values), interval=t_interval(values), per_seed=known)


def full_mean(values: Sequence[float | None]) -> float | None:
    """The mean; None if a value is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
