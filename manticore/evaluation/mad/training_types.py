"""What goes into a training of trials, and what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy
import torch
from torch import Tensor, nn

from manticore.evaluation.mad.metrics import Metrics

BuildModel = Callable[[torch.Generator], nn.Module]
Arrays = tuple[numpy.ndarray, numpy.ndarray]
"""Inputs and targets, each (examples, positions) int64; -100 is not scored."""

SCHEDULES = ("cosine", "constant")
DECAYS = ("matrices", "all")
PRECISIONS = ("float32", "bfloat16")
SELECTIONS = ("loss", "accuracy")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What all trials of a call share."""

    steps: int = 2000
    """Optimizer steps of a trial that does not stop early."""
    batch_size: int = 128
    """Examples per step, and per batch of a measurement."""
    schedule: str = "cosine"
    """Learning rate over the steps: cosine, from the trial's rate to `min_lr`, or constant."""
    min_lr: float = 1e-6
    """Where the cosine ends."""
    warmup: int = 0
    """Steps of linear rise before the schedule."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Of AdamW."""
    eps: float = 1e-8
    """Of AdamW."""
    decay: str = "matrices"
    """What weight decay acts on: matrices (and tensors of more dimensions, unless they are marked
    `_no_weight_decay`), or all parameters (as in athms/mad-lab)."""
    grad_clip: float = 1.0
    """Largest gradient norm of a trial; 0: no clipping."""
    eval_every: int = 100
    """Steps between measurements on the validation split; 0: only at the end."""
    patience: int = 0
    """Measurements without a better one after which a trial stops; 0: never for this reason."""
    stop_accuracy: float = 0.999
    """Validation token accuracy at which a trial stops; above 1: never for this reason."""
    select_by: str = "loss"
    """What makes a measurement better: a smaller loss, or a larger token accuracy."""
    precision: str = "float32"
    """float32, or bfloat16 (autocast; weights and optimizer stay in float32)."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("schedule", SCHEDULES),
            ("decay", DECAYS),
            ("precision", PRECISIONS),
            ("select_by", SELECTIONS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not known. Known: {', '.join(allowed)}."
                )
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"steps={self.steps} and batch_size={self.batch_size} must be at least 1."
            )
        for name in ("min_lr", "warmup", "grad_clip", "eval_every", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative.")

    def evaluates_after(self, step: int) -> bool:
        """Whether trials are measured after so many steps."""
        return step == self.steps or (self.eval_every > 0 and step % self.eval_every == 0)

    def learning_rate(self, step: int, base: float) -> float:
        """Rate of the step with this index, 0 to `steps - 1`, for a trial of rate `base`."""
        if step < self.warmup:
            return base * (step + 1) / self.warmup
        if self.schedule == "constant":
            return base
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        low = min(self.min_lr, base)
        return low + (base - low) * 0.5 * (1 + math.cos(math.pi * done))


class Point(NamedTuple):
    """One trial of a sweep."""

    lr: float
    weight_decay: float
    seed: int


@dataclass(frozen=True)
class SplitArrays:
    """The three splits of one task setting."""

    train: Arrays
    valid: Arrays
    test: Arrays

    def __post_init__(self) -> None:
        for name in ("train", "valid", "test"):
            inputs, targets = getattr(self, name)
            if inputs.ndim != 2 or inputs.shape != targets.shape or not len(inputs):
                raise ValueError(
                    f"The {name} split has inputs {inputs.shape} and targets {targets.shape}: both "
                    "must be (examples, positions), of the same shape, with at least one example."
                )


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One measurement of one trial."""

    step: int
    train_loss: float
    """Mean over the steps since the last measurement."""
    valid_loss: float
    valid_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one trial."""

    point: Point
    steps: int
    """Steps taken; of a diverged trial, those up to the first loss that is no number."""
    best_step: int | None
    """Steps behind the selected weights; None if no measurement had a loss."""
    valid: Metrics | None
    """At the selected weights."""
    test: Metrics | None
    """At the selected weights; the only look at the test split."""
    curve: tuple[CurvePoint, ...]
    diverged: bool
    """The loss was infinite or not a number; the trial ended there."""
    stopped: str
    """Why it ended: steps, patience, accuracy or diverged."""
    seconds: float
    """Its share of the time of the call, measurements included."""
    engine: str
    """one-by-one or stacked."""
    weights: dict[str, Tensor] | None = field(default=None, repr=False, compare=False)
    """The selected weights, if they were asked for."""
