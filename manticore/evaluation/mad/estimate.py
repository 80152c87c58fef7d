"""What a sweep will cost before it starts: trainings, steps, FLOPs, and hours by a short timing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manticore.evaluation.mad.plan import PlannedTrial

TIMED_STEPS = (1, 4)
"""Two short trainings: their difference is steps alone, without building and scoring."""
TIMED_EXAMPLES = 64
"""Examples of the short trainings' validation and test splits."""

Worker = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of what has no record yet."""

    trainings: int
    steps: int
    tokens: int
    flops: float | None
    """None if an architecture has no formula."""
    hours: float | None
    """On so many workers; None if nothing was timed."""

    def lines(self) -> list[str]:
        """For people."""
        said = [
            f"trainings: {self.trainings:,}",
            f"steps: {self.steps:,}",
            f"tokens: {self.tokens:,}",
        ]
        if self.flops is not None:
            said.append(f"FLOPs: {self.flops:.3g}")
        if self.hours is not None:
            said.append(f"hours: {self.hours:.2g}")
        return said


def estimate(
    planned: Sequence[PlannedTrial],
    processes: int = 1,
    rate: float | None = None,
    worker: Worker | None = None,
) -> Estimate:
    """Count what is planned, and time it.

    Args:
        processes: trainings at once, each as fast as the timed one.
        rate: FLOPs per second of one worker, instead of a timing; needs formulas.
        worker: trains a few steps of each architecture, to be timed.

    Raises:
        ValueError: a rate, and an architecture without formulas.
    """
    known = [one.flops for one in planned if one.flops is not None]
    flops = float(sum(known)) if len(known) == len(planned) else None
    hours = None
    if rate is not None:
        if flops is None:
            raise ValueError(
                "A stated rate needs FLOPs, and an architecture here has no formula for them. "
                "Leave --rate out: a few steps are timed then."
            )
        hours = flops / rate / processes / 3600
    elif worker is not None and planned:
        hours = _timed_seconds(planned, worker) / processes / 3600
    return Estimate(
        trainings=len(planned),
        steps=sum(one.steps for one in planned),
        tokens=sum(one.tokens for one in planned),
        flops=flops,
        hours=hours,
    )


def _timed_seconds(planned: Sequence[PlannedTrial], worker: Worker) -> float:
    """Seconds of all steps: those of each architecture's first setting, scaled by work."""
    by_name: dict[str, list[PlannedTrial]] = {}
    for one in planned:
        by_name.setdefault(str(one.about["architecture"]), []).append(one)
    total = 0.0
    for trials in by_name.values():
        first = trials[0]
        per_step = _seconds_per_step(first, worker)
        total += per_step * sum(_work(one) for one in trials) / (_work(first) / first.steps)
    return total


def _seconds_per_step(one: PlannedTrial, worker: Worker) -> float:
    seconds = []
    for steps in TIMED_STEPS:
        job = {"shared": _shortened(one.shared, steps), "points": [one.point]}
        copied = json.loads(json.dumps(job))
        start = time.perf_counter()
        worker(copied)
        seconds.append(time.perf_counter() - start)
    # A busy machine can make the longer one the faster one; a step is never free.
    return max(seconds[1] - seconds[0], 1e-4) / (TIMED_STEPS[1] - TIMED_STEPS[0])


def _shortened(shared: Mapping[str, Any], steps: int) -> dict[str, Any]:
    training = {**shared["training"], "steps": steps, "eval_every": 0}
    sizes = {"num_valid": TIMED_EXAMPLES, "num_test": TIMED_EXAMPLES}
    few = min(shared["num_train"], TIMED_STEPS[1] * training["batch_size"])
    return {**shared, **sizes, "num_train": few, "training": training}


def _work(one: PlannedTrial) -> float:
    return one.flops if one.flops is not None else float(one.tokens)
