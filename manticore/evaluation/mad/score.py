"""Scores from records: per task, and over all in both averages that the literature uses.

For each setting and seed the selection split chooses among rates and decays; the chosen trial's
test accuracy counts. A task's score is the mean over its settings, the overall score the mean over
six tasks, or over five where recall and noisy recall are one. Intervals are Student's t over seeds:
they hold for new first weights and orders of the examples, not for other examples.

Nothing is dropped. A trial that diverged competes with the weights it had before; where no trial of
a setting was ever measured, the score there is chance. What was not run makes every number that
would need it None. Both are listed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from manticore.evaluation.mad.choice import choose
from manticore.evaluation.mad.protocol import PROFILES, Protocol, protocol, shown_protocol
from manticore.evaluation.mad.results import Record
from manticore.evaluation.mad.score_types import (
    ArchitectureScore,
    Estimate,
    TaskScore,
    full_mean,
    seed_estimate,
)
from manticore.evaluation.mad.settings import BASELINES, RECALL_TASKS

ACCURACIES = ("token_accuracy", "macro_accuracy", "exact_match", "batch_macro_accuracy")
_ENTRY_KEYS = ("layers", "d_model", "module", "hf_config")
_PROTOCOL_KEYS = ("profile", "protocol_version", "task_versions", "compat")


@dataclass
class _Seen:
    """The records of one architecture under one protocol."""

    protocol: Protocol
    whole: dict[tuple[str, int], list[Record]] = field(default_factory=lambda: defaultdict(list))
    """(setting, seed) -> trainings with all of the protocol's steps."""
    screened: set[tuple[str, int, float, float]] = field(default_factory=set)
    """(setting, seed, lr, decay) that a shorter training stood for."""


def score(records: Iterable[Record]) -> list[ArchitectureScore]:
    """Scores of every architecture and protocol in the records, the best first."""
    by_entry: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_entry[_entry_key(record)].append(record)
    scores = [_score_entry(found) for found in by_entry.values()]
    return sorted(_told_apart(scores), key=_order)


def protocol_of(record: Record, others: Sequence[Record] = ()) -> Protocol:
    """The protocol of a record; of an older or own one what its records show of it."""
    settings = record["settings"]
    profile = settings["profile"]
    if profile in PROFILES:
        known = protocol(profile, settings["compat"])
        if known.version == settings["protocol_version"]:
            return known
    return shown_protocol([record, *others])


def is_whole(record: Record) -> bool:
    """Whether a training had all of its protocol's steps; shorter ones only screen."""
    return bool(record["settings"]["training"]["steps"] == record["whole_steps"])


def _score_entry(records: list[Record]) -> ArchitectureScore:
    first = records[0]
    seen = _sort_out(records)
    seeds = tuple(sorted({r["settings"]["seed"] for r in records if is_whole(r)}))
    shown = {r["settings"]["task"] for r in records}
    tasks = {
        task: _score_task(task, seen, seeds)
        for task in BASELINES
        if task in shown and task in seen.protocol.tasks
    }
    known = [_spent(r) for r in records]
    return ArchitectureScore(
        name=first["architecture"],
        protocol={key: first["settings"][key] for key in _PROTOCOL_KEYS},
        tasks=tasks,
        average6=_average(tasks, seeds, "accuracy", merged=False),
        average5=_average(tasks, seeds, "accuracy", merged=True),
        normalised6=_average(tasks, seeds, "normalised", merged=False),
        seeds=seeds,
        costs=first["costs"],
        layers=tuple(first["settings"].get("layers", ())),
        token_mixers=tuple(first["token_mixers"]),
        trials=sum(map(is_whole, records)),
        training_flops=None if None in known else float(sum(k for k in known if k is not None)),
        seconds=float(sum(r["result"]["seconds"] for r in records)),
        diverged=tuple(_title(r) for r in records if r["result"]["diverged"]),
        missing=tuple(_missing(seen, seeds, tasks)),
    )


def _sort_out(records: list[Record]) -> _Seen:
    seen = _Seen(protocol=protocol_of(records[0], records[1:]))
    for record in records:
        settings = record["settings"]
        place = record["setting"], settings["seed"]
        if is_whole(record):
            seen.whole[place].append(record)
        else:
            seen.screened.add((*place, settings["lr"], settings["weight_decay"]))
    return seen


def _score_task(task: str, seen: _Seen, seeds: Sequence[int]) -> TaskScore:
    labels = [s.label for s in seen.protocol.settings if s.task == task]
    chosen = {
        (label, seed): _chosen_values(seen.whole[label, seed], seen.protocol)
        for label in labels
        for seed in seeds
        if seen.whole.get((label, seed))
    }

    def over_settings(key: str) -> Estimate:
        def value(label: str, seed: int) -> float | None:
            return chosen.get((label, seed), {}).get(key)

        return seed_estimate({s: full_mean([value(label, s) for label in labels]) for s in seeds})

    return TaskScore(
        accuracy=over_settings("score"),
        normalised=over_settings("normalised"),
        others={key: over_settings(key).mean for key in (*ACCURACIES, "loss")},
        settings={
            label: seed_estimate({s: chosen.get((label, s), {}).get("score") for s in seeds})
            for label in labels
        },
    )


def _chosen_values(trials: Sequence[Record], rules: Protocol) -> dict[str, float | None]:
    """The numbers that count for one setting and seed."""
    bounds = trials[0]["result"]
    ceiling, chance = bounds["ceiling"], bounds["chance"]
    chosen = choose(trials, rules)
    measured = chosen["result"]["test"] if chosen else None
    if measured is None:
        # It diverged before its first measurement, at every rate: it knows nothing.
        blank = dict.fromkeys((*ACCURACIES, "loss"))
        return {**blank, "score": chance, "normalised": 0.0}
    value = float(measured[rules.metric])
    # Ceiling and chance are of tokens, so mad-lab's classes have no normalised score.
    is_comparable = rules.metric == "token_accuracy" and ceiling > chance
    normalised = (value - chance) / (ceiling - chance) if is_comparable else None
    return {**measured, "score": value, "normalised": normalised}


def _average(
    tasks: Mapping[str, TaskScore], seeds: Sequence[int], kind: str, merged: bool
) -> Estimate:
    """The overall score; None for a seed unless all six tasks have one."""
    per_seed: dict[int, float | None] = {}
    for seed in seeds:
        values = {task: getattr(t, kind).per_seed.get(seed) for task, t in tasks.items()}
        columns = [values.get(task) for task in BASELINES if not (merged and task in RECALL_TASKS)]
        if merged:
            columns.append(full_mean([values.get(task) for task in RECALL_TASKS]))
        per_seed[seed] = full_mean(columns)
    return seed_estimate(per_seed)


def _missing(seen: _Seen, seeds: Sequence[int], tasks: Mapping[str, TaskScore]) -> Iterable[str]:
    for setting in seen.protocol.settings:
        for seed in seeds if setting.task in tasks else ():
            found = seen.whole.get((setting.label, seed), [])
            points = {(r["settings"]["lr"], r["settings"]["weight_decay"]) for r in found}
            for lr, decay in seen.protocol.grid:
                place = (setting.label, seed, lr, decay)
                if (lr, decay) not in points and place not in seen.screened:
                    yield f"{setting.label}, lr {lr:g}, weight decay {decay:g}, seed {seed}"


def _spent(record: Record) -> float | None:
    """FLOPs of a training, of the steps that it took."""
    planned, taken = record["planned_flops"], record["result"]["steps"]
    return None if planned is None else planned * taken / record["settings"]["training"]["steps"]


def _title(record: Record) -> str:
    s = record["settings"]
    point = f"lr {s['lr']:g}, weight decay {s['weight_decay']:g}, seed {s['seed']}"
    return f"{record['setting']}, {point}"


def _entry_key(record: Record) -> str:
    settings = record["settings"]
    parts = {key: settings.get(key) for key in (*_ENTRY_KEYS, *_PROTOCOL_KEYS)}
    return json.dumps([record["architecture"], parts], sort_keys=True)


def _told_apart(scores: Sequence[ArchitectureScore]) -> list[ArchitectureScore]:
    """Different architectures of one name and protocol get numbers."""
    told: list[ArchitectureScore] = []
    times: dict[str, int] = defaultdict(int)
    for one in scores:
        place = json.dumps([one.name, one.protocol], sort_keys=True)
        times[place] += 1
        number = times[place]
        told.append(dataclasses.replace(one, name=f"{one.name} #{number}") if number > 1 else one)
    return told


def _order(one: ArchitectureScore) -> tuple[str, float, str]:
    mean = one.overall
    return (
        json.dumps(one.protocol, sort_keys=True),
        -(mean if mean is not None else -math.inf),
        one.name,
    )
