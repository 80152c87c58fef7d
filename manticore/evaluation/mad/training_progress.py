"""What is known of one trial while it trains: its curve, its best measurement, and when it ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from manticore.evaluation.mad.metrics import Metrics
from manticore.evaluation.mad.training_types import CurvePoint, Outcome, Point, TrainSettings


@dataclass
class Progress:
    """One trial so far; both engines feed it the same numbers."""

    point: Point
    settings: TrainSettings
    curve: list[CurvePoint] = field(default_factory=list)
    best: Metrics | None = None
    best_step: int | None = None
    steps: int = 0
    stopped: str | None = None
    """Why it ended; None while it goes on."""
    seconds: float = 0.0
    _misses: int = 0

    def measure(self, step: int, train_losses: Tensor, valid: Metrics) -> bool:
        """Take in a measurement after `step` steps.

        Args:
            train_losses: (steps since the last measurement,).

        Returns:
            Whether it is the best so far.
        """
        finite = train_losses.isfinite()
        if not finite.all() or not math.isfinite(valid.loss):
            # The step of the first bad loss; a bad measurement alone comes after the last step.
            taken = int((~finite).int().argmax()) + 1 if not finite.all() else len(finite)
            self.steps, self.stopped = step - len(finite) + taken, "diverged"
            return False
        self.steps = step
        self.curve.append(
            CurvePoint(
                step=step,
                train_loss=float(train_losses.double().mean()),
                valid_loss=valid.loss,
                valid_accuracy=valid.token_accuracy,
            )
        )
        is_best = self.best is None or self._score(valid) > self._score(self.best)
        self._misses = 0 if is_best else self._misses + 1
        if is_best:
            self.best, self.best_step = valid, step
        self.stopped = self._reason_to_stop(valid)
        return is_best

    def outcome(
        self, engine: str, test: Metrics | None, weights: dict[str, Tensor] | None
    ) -> Outcome:
        """The trial when it has ended."""
        assert self.stopped is not None
        return Outcome(
            point=self.point,
            steps=self.steps,
            best_step=self.best_step,
            valid=self.best,
            test=test,
            curve=tuple(self.curve),
            diverged=self.stopped == "diverged",
            stopped=self.stopped,
            seconds=self.seconds,
            engine=engine,
            weights=weights,
        )

    def _score(self, metrics: Metrics) -> float:
        by_loss = self.settings.select_by == "loss"
        return -metrics.loss if by_loss else metrics.token_accuracy

    def _reason_to_stop(self, valid: Metrics) -> str | None:
        if valid.token_accuracy >= self.settings.stop_accuracy:
            return "accuracy"
        if self.settings.patience and self._misses >= self.settings.patience:
            return "patience"
        return "steps" if self.steps >= self.settings.steps else None
