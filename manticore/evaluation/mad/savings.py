"""Cheaper at the same ranking? Halving and early stopping against the exhaustive sweep, measured.

Both are judged on records: of a folder that holds the whole grid and the rungs of halving
(`manticore mad run`, then the same with `--halving`), and of the validation curves that every
record keeps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from manticore.evaluation.mad.halving import default_rungs, replay
from manticore.evaluation.mad.protocol import Protocol
from manticore.evaluation.mad.ranks import rank_agreement
from manticore.evaluation.mad.results import Record
from manticore.evaluation.mad.score import is_whole, protocol_of, score

PATIENCES = (1, 2, 3, 5)
"""Looks at the validation split without improvement after which a training would stop."""


def savings(records: Sequence[Record]) -> dict[str, Any]:
    """What halving and early stopping save on these records, and how they rank.

    Args:
        records: of one protocol.

    Returns:
        {"exhaustive", "halving" (None without its rungs), "patience"}: steps, saved share, and
        the rank agreement of the architectures' averages with the exhaustive sweep.
    """
    if len({_protocol_key(record) for record in records}) > 1:
        raise ValueError("Savings are measured within one protocol. Give one folder at a time.")
    rules = protocol_of(records[0], records[1:])
    whole = [record for record in records if is_whole(record)]
    steps = sum(record["result"]["steps"] for record in whole)
    exhaustive = _averages(whole)
    found: dict[str, Any] = {
        "exhaustive": {"steps": steps, "trainings": len(whole), "averages": exhaustive},
        "halving": None,
        "patience": [_patience(whole, rules, p, steps) for p in PATIENCES],
    }
    replayed = replay(records, rules)
    if replayed is not None:
        made, taken = replayed
        averages = _averages(made)
        found["halving"] = {
            "rungs": [list(rung) for rung in default_rungs(len(rules.grid))],
            "steps": taken,
            "saved": 1 - taken / steps,
            "averages": averages,
            "ranks": _ranks(averages, exhaustive),
        }
    return found


def stop_index(curve: Sequence[Sequence[float]], patience: int) -> int:
    """Index of the look at which a training stops: `patience` looks without a smaller loss."""
    best, misses = float("inf"), 0
    for i, (_, _, loss, _) in enumerate(curve):
        misses = 0 if loss < best else misses + 1
        best = min(best, loss)
        if misses >= patience:
            return i
    return len(curve) - 1


def _protocol_key(record: Record) -> tuple[str, int, str]:
    settings = record["settings"]
    return settings["profile"], settings["protocol_version"], settings["compat"]


def _patience(
    whole: Sequence[Record], rules: Protocol, patience: int, steps: int
) -> dict[str, Any]:
    """Early stopping, replayed on the validation curves and judged by validation accuracy.

    A stopped training's test accuracy is not known, so both sides are ranked by validation.
    """
    taken = 0
    stopped: dict[tuple[str, str, int], float] = defaultdict(float)
    full: dict[tuple[str, str, int], float] = defaultdict(float)
    for record in whole:
        curve = record["result"]["curve"]
        place = record["architecture"], record["setting"], record["settings"]["seed"]
        if not curve:
            taken += record["result"]["steps"]
            continue
        last = stop_index(curve, patience)
        # A training that ended for another reason took a few steps more than its last look.
        taken += curve[last][0] if last < len(curve) - 1 else record["result"]["steps"]
        stopped[place] = max(stopped[place], _accuracy_at_best(curve[: last + 1]))
        full[place] = max(full[place], _accuracy_at_best(curve))
    averages = _by_architecture(stopped, rules)
    return {
        "patience": patience,
        "steps": taken,
        "saved": 1 - taken / steps,
        "ranks": _ranks(averages, _by_architecture(full, rules)),
    }


def _accuracy_at_best(curve: Sequence[Sequence[float]]) -> float:
    return min(curve, key=lambda look: look[2])[3]


def _by_architecture(
    values: Mapping[tuple[str, str, int], float], rules: Protocol
) -> dict[str, float]:
    """Mean over tasks of the mean over a task's settings and seeds."""
    tasks = {setting.label: setting.task for setting in rules.settings}
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (name, label, _), value in values.items():
        found[name][tasks[label]].append(value)
    return {
        name: sum(sum(v) / len(v) for v in by_task.values()) / len(by_task)
        for name, by_task in found.items()
    }


def _averages(records: Sequence[Record]) -> dict[str, float]:
    return {one.name: one.average6.mean for one in score(records) if one.average6.mean is not None}


def _ranks(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, Any] | None:
    names = sorted(set(a) & set(b))
    found = rank_agreement([a[name] for name in names], [b[name] for name in names])
    return None if found is None else found.record()
