"""The Loss Improvement Threshold: inherited weights stay frozen until the new ones stop gaining.

Choi, 2024 (arXiv:2404.02684). Validation losses are averaged in windows; after each full window

    improvement = (previous window's mean - this window's mean) / previous window's mean

and where it is below the threshold that is a strike. After `patience` strikes in a row everything
is trained. The original counts strikes that lie apart, reads the training loss of a finished run,
and winds back; here the rule runs inside the training and goes on from where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from torch import nn
from torch.optim import Optimizer

from manticore.config.transfer_recipe import FreezeConfig
from manticore.training import NonFiniteLossError

INHERITED = "inherited"
"""Name of the parameter group that waits."""


def window_means(losses: Sequence[float], window: int) -> list[float]:
    """Means of the full windows, in order."""
    whole = len(losses) // window
    return [sum(losses[i * window : (i + 1) * window]) / window for i in range(whole)]


def is_due(losses: Sequence[float], rule: FreezeConfig) -> bool:
    """Whether the last `patience` windows all improved by less than the threshold."""
    means = window_means(losses, rule.window)
    gains = [(a - b) / a for a, b in pairwise(means)]
    last = gains[-rule.patience :]
    return len(last) == rule.patience and all(gain < rule.threshold for gain in last)


class Unfreezing:
    """Keeps the inherited parameters as they are until the rule fires; a `training.Director`.

    The parameter groups are there from the first step, so that a checkpoint from before the
    unfreezing continues like one from after it. A frozen parameter takes no gradient, which keeps
    the optimizer from decaying it or giving it moments.

    Args:
        inherited: the parameters that wait; they must be in the group `INHERITED`.
        steps: of the whole run.
    """

    def __init__(self, inherited: Iterable[nn.Parameter], rule: FreezeConfig, steps: int) -> None:
        self.inherited, self.rule, self.steps = list(inherited), rule, steps
        self.memory: dict[str, Any] = {"losses": [], "unfrozen_at": None, "why": None}

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        """Decide, then freeze or thaw, with a warm-up of its own after the thaw."""
        if self.memory["unfrozen_at"] is None:
            why = self._reason(step)
            if why:
                self.memory.update(unfrozen_at=step, why=why)
        since = self.memory["unfrozen_at"]
        for parameter in self.inherited:
            parameter.requires_grad_(since is not None)
        if since is None:
            return
        scale = min(1.0, (step - since + 1) / max(1, self.rule.warmup_steps))
        for group in optimizer.param_groups:
            if group["name"] == INHERITED:
                group["lr_scale"] = scale

    def after_evaluation(self, values: Mapping[str, Any]) -> None:
        """Take note of a validation loss."""
        self.memory["losses"].append(float(values["loss"]))

    def _reason(self, step: int) -> str | None:
        if is_due(self.memory["losses"], self.rule):
            return "threshold"
        latest = self.rule.latest
        if latest is not None and step >= round(latest * self.steps):
            return "latest"
        return None


@contextmanager
def said_when_thawed(director: Unfreezing | None) -> Iterator[None]:
    """Say, when a loss is not finite, that the inherited weights had just been set free."""
    try:
        yield
    except NonFiniteLossError as error:
        if director is not None and director.memory["unfrozen_at"] is not None:
            error.args = (
                f"{error} The inherited weights are trained since step "
                f"{director.memory['unfrozen_at']}: a longer freeze.warmup_steps may help, too.",
            )
        raise
