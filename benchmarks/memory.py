"""Peak memory of a training step: the hybrid against the sum of its components.

`step_bytes` is the highest sum of live tensors during forward and backward, gradients included,
beyond what was there before, as torch's profiler records every allocation: exact, repeatable and
blind to other work on the machine. `peak_bytes` adds the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks._pair import (
    GOAL,
    NAMES,
    SMALL,
    Pair,
    build_components,
    build_hybrid,
    random_ids,
    training_step,
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The pair, and the hybrids built of it."""

    pair: Pair = SMALL
    hybrids: tuple[tuple[str, int], ...] = (("streams", 2), ("streams", 4), ("shared", 2))


SIZES = Sizes()


def run() -> dict[str, Any]:
    """Measure each component, each hybrid, and hybrids whose other branch has no weight."""
    pair = SIZES.pair
    components = zip(NAMES, build_components(pair), strict=True)
    alone = {name: measure(pair, model) for name, model in components}
    hybrids = [
        {"mixing": mixing, "num_blocks": num_blocks}
        | _compared(measure(pair, build_hybrid(pair, num_blocks, mixing)), list(alone.values()))
        for mixing, num_blocks in SIZES.hybrids
    ]
    idle = []
    for k, name in enumerate(NAMES):
        hybrid = build_hybrid(pair, 2, "streams")
        hybrid.set_mixture(torch.eye(len(NAMES))[[k, k]])
        # The idle component keeps its parameters: look at the ratio of the step's own bytes.
        idle.append({"component": name} | _compared(measure(pair, hybrid), [alone[name]]))
    return {"goal": GOAL, "components": alone, "hybrids": hybrids, "idle_branch": idle}


def measure(pair: Pair, model: nn.Module) -> dict[str, int]:
    """Bytes of one model: parameters, training step, both."""
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    step = training_step(model, random_ids(pair))
    step()  # whatever is made once and kept
    model.zero_grad()
    step_bytes = peak_allocated(step)
    return {
        "parameter_bytes": parameters,
        "step_bytes": step_bytes,
        "peak_bytes": parameters + step_bytes,
    }


def peak_allocated(work: Callable[[], object]) -> int:
    """Highest sum of bytes that `work` held at one time, beyond what was there before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    # The profiler's public table sums by operator; the order in time is only in its events.
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def _compared(case: dict[str, int], alone: list[dict[str, int]]) -> dict[str, Any]:
    keys = ("peak_bytes", "step_bytes")
    return case | {f"{key}_ratio": case[key] / sum(one[key] for one in alone) for key in keys}
