"""Train trials that differ only in rate, decay and seed, and measure each on its best weights.

A trial takes batches in an order that its seed fixes, is measured on the validation split as it
goes, stops when that no longer helps, and is measured once on the test split with the weights of
its best measurement. There are two engines with equal results: one trial after another
(`training_single`, the naive twin) and all trials as one stacked model (`stacked`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn

from manticore.evaluation.mad.metrics import IGNORE, Metrics

ENGINES = ("auto", "one-by-one", "stacked")
SCHEDULES = ("cosine", "constant")
DECAYS = ("matrices", "all")
PRECISIONS = ("float32", "bfloat16")
SELECTIONS = ("loss", "accuracy")

BuildModel = Callable[[torch.Generator], nn.Module]
Arrays = tuple[numpy.ndarray, numpy.ndarray]
"""Inputs and targets, each (examples, positions) int64; -100 is not scored."""


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


def train_points(
    build_model: BuildModel,
    points: Sequence[Point],
    splits: SplitArrays,
    settings: TrainSettings,
    on_step: Callable[[int], None] | None = None,
    *,
    engine: str = "auto",
    device: torch.device | str = "cpu",
    keep_weights: bool = False,
) -> list[Outcome]:
    """Train every point, and measure it.

    Args:
        build_model: makes the model; its weights come from the generator it is given. The model
            maps (batch, seq) tokens to logits (batch, seq, vocab), or to an output with `.logits`.
        points: the trials; equal seeds mean equal first weights and equal batches.
        on_step: called with how many steps of all trials were done (or became unnecessary).
        engine: "one-by-one"; "stacked"; or "auto": stacked on a GPU where the model can be.
        keep_weights: return the selected weights, too.

    Returns:
        One outcome for each point, in order.
    """
    from manticore.evaluation.mad.stacked import can_stack, train_stacked
    from manticore.evaluation.mad.training_single import train_one_by_one

    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r} is not known. Known: {', '.join(ENGINES)}.")
    if engine == "auto":
        gains = len(points) > 1 and torch.device(device).type != "cpu"
        stackable = gains and can_stack(build_model, splits, device)
        engine = "stacked" if stackable else "one-by-one"
    train = train_stacked if engine == "stacked" else train_one_by_one
    return train(
        build_model,
        points,
        splits,
        settings,
        on_step or (lambda done: None),
        device=torch.device(device),
        keep_weights=keep_weights,
    )


def logits_of(output: Any) -> Tensor:
    """Logits (batch, seq, vocab) of whatever a model returned."""
    logits = getattr(output, "logits", output)
    if isinstance(logits, tuple):
        logits = logits[0]
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"The model returned {shape}; it must return logits (batch, seq, vocab), or an output "
            "with such .logits."
        )
    return logits


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy over the scored positions.

    Written with operations that can be mapped over stacked weights.

    Args:
        logits: (B, T, V).
        targets: (B, T), -100 is not scored.
    """
    scored = targets != IGNORE
    known = targets.where(scored, 0).unsqueeze(-1)
    losses = -logits.float().log_softmax(dim=-1).gather(-1, known).squeeze(-1)
    return (losses * scored).sum() / scored.sum().clamp(min=1)
