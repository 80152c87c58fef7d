"""Trial records without training: what the tests of scores and boards read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from manticore.evaluation.mad.protocol import Protocol
from manticore.evaluation.mad.settings import Setting

COSTS = {"parameters": 1000, "state": 64, "fixed_state": 64, "flops_per_token": 2000}

Value = Callable[[Setting, float, float, int], float | None]


def make_record(
    name: str,
    rules: Protocol,
    setting: Setting,
    point: tuple[float, float, int],
    valid: float | None,
    test: float | None = None,
    share: float = 1.0,
    **changes: Any,
) -> dict[str, Any]:
    """One record; `valid` None: it diverged before its first measurement."""
    lr, decay, seed = point
    whole = rules.steps_of(setting)
    steps = max(1, round(share * whole))
    settings = {
        "profile": rules.name,
        "protocol_version": rules.version,
        "task_versions": {"in-context-recall": 1},
        "compat": rules.compat,
        "layers": [{"mixer": name}],
        "d_model": 8,
        "task": setting.task,
        "options": dict(setting.options),
        "num_train": setting.num_train,
        "training": {"steps": steps, "batch_size": rules.batch_size},
        "lr": lr,
        "weight_decay": decay,
        "seed": seed,
    }
    result = {
        "diverged": valid is None,
        "stopped": "diverged" if valid is None else "steps",
        "steps": steps,
        "best_step": None if valid is None else steps,
        "valid": None if valid is None else metrics(valid),
        "test": None if valid is None else metrics(valid if test is None else test),
        "curve": [] if valid is None else [[steps, 1.0, 1.0 - valid, valid]],
        "engine": "one-by-one",
        "seconds": 1.0,
        "ceiling": 1.0,
        "chance": 0.1,
    }
    text = json.dumps(settings, sort_keys=True)
    return {
        "schema": 1,
        "key": hashlib.sha256(text.encode()).hexdigest()[:20],
        "architecture": name,
        "token_mixers": [name],
        "costs": COSTS,
        "setting": setting.label,
        "whole_steps": whole,
        "settings": settings,
        "result": result,
        "planned_flops": 1e6,
        **changes,
    }


def metrics(accuracy: float) -> dict[str, float]:
    """All measures of a split, as if each were derived from one number."""
    return {
        "loss": 1.0 - accuracy,
        "token_accuracy": accuracy,
        "macro_accuracy": accuracy,
        "exact_match": accuracy**2,
        "batch_macro_accuracy": accuracy - 0.01,
        "scored": 100,
    }


def make_records(
    name: str, rules: Protocol, seeds: Sequence[int], value: Value, **changes: Any
) -> list[dict[str, Any]]:
    """Records of the whole grid; `value(setting, lr, decay, seed)` is the accuracy."""
    points: Iterable[tuple[float, float, int]] = [(*p, seed) for seed in seeds for p in rules.grid]
    return [
        make_record(name, rules, setting, point, value(setting, *point), **changes)
        for setting in rules.settings
        for point in points
    ]
