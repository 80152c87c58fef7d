"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math

KINDS = ("linear", "cosine", "constant")


def learning_rate(
    step: int, *, steps: int, base: float, warmup: int = 0, kind: str = "linear"
) -> float:
    """Return the learning rate of one step.

    Args:
        step: the step about to be taken, 0 to ``steps - 1``; later steps get the last value.
        steps: length of the whole run, warm-up included.
        base: the highest learning rate, reached at the end of the warm-up.
        warmup: steps of linear rise; the first step already moves, at ``base / warmup``.
        kind: what follows the warm-up: ``linear`` or ``cosine`` to zero, or ``constant``.
            Zero would be reached at step ``steps``, so the last step still moves.
    """
    if kind not in KINDS:
        raise ValueError(f"Unknown schedule {kind!r}. Known: {', '.join(KINDS)}.")
    if steps < 1 or warmup < 0 or step < 0:
        raise ValueError(
            f"steps={steps}, warmup={warmup}, step={step}: steps must be at least 1 "
            "and the others at least 0."
        )
    if step < warmup:
        return base * ((step + 1) / warmup)
    if kind == "constant":
        return base
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    if kind == "linear":
        return base * (1.0 - done)
    return base * 0.5 * (1.0 + math.cos(math.pi * done))
