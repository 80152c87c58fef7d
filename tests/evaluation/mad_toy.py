"""A worker that trains nothing: its outcomes follow from the settings, and it can be hurt.

Worker processes import it, so it imports nothing heavy.
"""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

from manticore.evaluation.mad.plan import PlannedTrial
from manticore.training.pool import Trial
from tests.evaluation.mad_records import COSTS, metrics

TOY = "tests.evaluation.mad_toy:train_toy"


def train_toy(job: dict[str, Any]) -> dict[str, Any]:
    """Answer a group. The task's name says what happens: "slow", "kill", "fail", or nothing."""
    shared = job["shared"]
    if shared["trace"]:
        with Path(shared["trace"]).open("a") as file:
            file.write(f"{shared['x']} {len(job['points'])} {os.getpid()}\n")
    if "slow" in shared["mood"]:
        time.sleep(0.3)
    if "endless" in shared["mood"]:
        time.sleep(600)
    if "kill" in shared["mood"]:
        os.kill(os.getpid(), signal.SIGKILL)
    if "fail" in shared["mood"]:
        raise ArithmeticError("this cannot be trained")
    return {"outcomes": [_outcome(shared, point) for point in job["points"]]}


def _outcome(shared: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    accuracy = round(0.5 + 0.01 * shared["x"] + point["lr"] + 0.001 * point["seed"], 6)
    diverged = point["lr"] > 0.1
    return {
        "diverged": diverged,
        "stopped": "diverged" if diverged else "steps",
        "steps": 10,
        "best_step": None if diverged else 10,
        "valid": None if diverged else metrics(accuracy),
        "test": None if diverged else metrics(accuracy),
        "curve": [[10, float("nan") if diverged else 1.0, 0.5, accuracy]],
        "engine": "toy",
        "seconds": 0.0,
        "ceiling": 1.0,
        "chance": 0.1,
    }


def toy_trials(
    settings: list[int],
    rates: tuple[float, ...] = (0.01, 0.02),
    seeds: int = 2,
    mood: dict[int, str] | None = None,
    trace: str = "",
) -> list[PlannedTrial]:
    """Trials of some settings, each with all points.

    Args:
        mood: what goes wrong in a setting.
        trace: a file in which workers note what they begin.
    """
    return [
        PlannedTrial(
            trial=Trial(
                settings={
                    "x": x,
                    "mood": (mood or {}).get(x, ""),
                    "trace": trace,
                    "training": {"steps": 10},
                    "lr": lr,
                    "weight_decay": 0.0,
                    "seed": seed,
                },
                name=f"toy {x}",
            ),
            about={
                "architecture": "toy",
                "token_mixers": ["toy"],
                "costs": COSTS,
                "setting": f"CR x={x}",
                "whole_steps": 10,
            },
            steps=10,
            tokens=1000,
            flops=100.0,
        )
        for x in settings
        for lr in rates
        for seed in range(seeds)
    ]


RULED = "tests.evaluation.mad_toy:train_by_rule"


def train_by_rule(job: dict[str, Any]) -> dict[str, Any]:
    """Answer a group of a real plan: more layers and steps are better, and so is lr near 5e-4."""
    return {"outcomes": [_ruled(job["shared"], point) for point in job["points"]]}


def _ruled(shared: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    steps = shared["training"]["steps"]
    layers = len(shared["layers"]) + sum("n_heads" in layer for layer in shared["layers"])
    miss = abs(math.log10(point["lr"] / 5e-4)) + point["weight_decay"]
    accuracy = 0.2 + 0.05 * layers + 0.1 * steps / (steps + 100) - 0.05 * miss
    looks = [[i * steps // 4, 1.0, 1 - accuracy * i / 4, accuracy * i / 4] for i in range(1, 5)]
    return {
        "diverged": False,
        "stopped": "steps",
        "steps": steps,
        "best_step": steps,
        "valid": metrics(accuracy),
        "test": metrics(accuracy - 0.01),
        "curve": looks,
        "engine": "toy",
        "seconds": 0.0,
        "ceiling": 1.0,
        "chance": 0.1,
    }
