"""Which of several trainings of a setting counts: the one that the selection split prefers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from manticore.evaluation.mad.protocol import Protocol
from manticore.evaluation.mad.results import Record


def choose(trials: Sequence[Record], rules: Protocol) -> Record | None:
    """The trial that the selection split prefers: highest accuracy, then lowest loss.

    None if no trial was ever measured.
    """

    best = max(trials, key=lambda trial: preference(trial, rules), default=None)
    return best if best and best["result"][rules.selects_on] is not None else None


def preference(trial: Record, rules: Protocol) -> tuple[float, float]:
    """What a higher value of is better: accuracy, then minus the loss, on the selection split."""
    found = trial["result"][rules.selects_on]
    if found is None:  # it diverged before its first measurement
        return -math.inf, -math.inf
    return found[rules.metric], -float(found["loss"])
