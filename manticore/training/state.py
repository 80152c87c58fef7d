"""What a loop keeps between steps, and the error that ends it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class NonFiniteLossError(ValueError):
    """The loss or the gradient became NaN or infinite. Attributes say where."""

    def __init__(
        self, name: str, step: int, what: str, last_loss: float | None, checkpoint: Path | None
    ) -> None:
        self.name, self.step, self.last_loss = name, step, last_loss
        self.checkpoint = checkpoint
        last = "no step before it was finite" if last_loss is None else f"last loss {last_loss:.4g}"
        where = (
            f"The last good checkpoint is {checkpoint}" if checkpoint else "No checkpoint exists"
        )
        super().__init__(
            f"{name}: the {what} at step {step} is not finite ({last}). {where}. "
            "Try a lower learning rate or a longer warm-up, then look for bad data in that batch."
        )


@dataclass(kw_only=True)
class LoopState:
    """Everything that a resumed run needs back."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, Optimizer] = field(default_factory=dict)
    generators: dict[str, torch.Generator] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    """What the step function itself must remember, as JSON; restored in place."""


@dataclass
class LoopResult:
    """What a loop has done so far; also its record in checkpoints and in result.json."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Training time over all sessions, evaluation and checkpoints included."""
    losses: list[float] = field(default_factory=list)
    """One per step."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """What eval_fn returned, each with its ``step``."""
