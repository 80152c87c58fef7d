"""Every training of a sweep before the first one runs: its settings, its key, its cost."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manticore.evaluation.mad.entry import Entry
from manticore.evaluation.mad.protocol import Protocol
from manticore.evaluation.mad.results import task_versions
from manticore.evaluation.mad.settings import Setting
from manticore.training.pool import Trial

Point = tuple[float, float, int]
"""Learning rate, weight decay, seed."""
POINT_KEYS = ("lr", "weight_decay", "seed")


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """One training."""

    trial: Trial
    """Its settings, whose hash names its record."""
    about: Mapping[str, Any]
    """What the record says beyond the settings: names, and what the model costs."""
    steps: int
    """Optimizer steps if nothing stops it early."""
    tokens: int
    """Of all steps."""
    flops: float | None
    """Of the whole training; None for an architecture without formulas."""

    @property
    def point(self) -> dict[str, Any]:
        """Rate, decay and seed: all that trials of one group differ in."""
        return {key: self.trial.settings[key] for key in POINT_KEYS}

    @property
    def shared(self) -> dict[str, Any]:
        """The settings without the point."""
        return {k: v for k, v in self.trial.settings.items() if k not in POINT_KEYS}

    @property
    def group(self) -> str:
        """Trials with equal text train as one stacked model."""
        return json.dumps(self.shared, sort_keys=True, ensure_ascii=False)


def plan_trials(
    entries: Sequence[Entry],
    protocol: Protocol,
    seeds: Sequence[int],
    share: float = 1.0,
    points: Mapping[tuple[str, str], Iterable[Point]] | None = None,
) -> list[PlannedTrial]:
    """All trainings of some architectures under a protocol.

    Args:
        share: of the protocol's steps, for screening; scores come from whole trainings only.
        points: (architecture, setting label) -> points, where not the whole grid is wanted.

    Raises:
        ValueError: an architecture or a setting that cannot be trained.
    """
    if len(set(seeds)) < len(seeds) or not seeds:
        raise ValueError(f"seeds={list(seeds)}: give at least one, and each once.")
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError(f"Two architectures have one name: {', '.join(names)}. Name each.")
    whole = [(lr, decay, seed) for lr, decay in protocol.grid for seed in seeds]
    planned = []
    for entry in entries:
        entry.check(protocol.settings)
        about = {
            "architecture": entry.name,
            "token_mixers": entry.token_mixers(),
            "costs": entry.costs(),
        }
        for setting in protocol.settings:
            chosen = whole if points is None else points.get((entry.name, setting.label), ())
            planned += _plan_group(entry, protocol, setting, list(chosen), share, about)
    return planned


def _plan_group(
    entry: Entry,
    protocol: Protocol,
    setting: Setting,
    points: Sequence[Point],
    share: float,
    about: Mapping[str, Any],
) -> list[PlannedTrial]:
    if not points:
        return []
    whole = protocol.steps_of(setting)
    steps = max(1, round(share * whole))
    shared = shared_settings(entry, protocol, setting, steps)
    flops = _training_flops(entry, protocol, setting, steps)
    about = {**about, "setting": setting.label, "whole_steps": whole}
    return [
        PlannedTrial(
            trial=Trial(
                settings={**shared, **dict(zip(POINT_KEYS, point, strict=True))},
                name=f"{entry.name}: {setting.label}",
            ),
            about=about,
            steps=steps,
            tokens=steps * protocol.batch_size * tokens_of(setting),
            flops=flops,
        )
        for point in points
    ]


def shared_settings(
    entry: Entry, protocol: Protocol, setting: Setting, steps: int
) -> dict[str, Any]:
    """Everything but the point that decides a training, as JSON."""
    from manticore.evaluation.mad.training_types import TrainSettings

    training = dataclasses.asdict(TrainSettings(**protocol.training(steps)))
    return {
        "profile": protocol.name,
        "protocol_version": protocol.version,
        "task_versions": task_versions(),
        "compat": protocol.compat,
        **entry.identity,
        "task": setting.task,
        "options": dict(setting.options),
        "num_train": setting.num_train,
        "num_valid": protocol.num_valid,
        "num_test": protocol.num_test,
        "data_seed": protocol.data_seed,
        "training": {**training, "betas": list(training["betas"])},
    }


def tokens_of(setting: Setting) -> int:
    """Input tokens of one example.

    Raises:
        ValueError: options that the task does not allow.
    """
    from manticore.tasks.mad import example_length

    return example_length(setting.task, **setting.options)


def _training_flops(entry: Entry, protocol: Protocol, setting: Setting, steps: int) -> float | None:
    """Forward and backward over all steps; a backward pass counts as two forward ones."""
    seq_len = tokens_of(setting)
    costs = entry.costs(int(setting.options["vocab_size"]), seq_len)
    per_token = costs["flops_per_token"]
    return None if per_token is None else 3.0 * per_token * steps * protocol.batch_size * seq_len
