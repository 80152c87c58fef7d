"""What a training run is asked for, and what it gives back."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from manticore.training.schedules import KINDS


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How `train` trains: length, AdamW, schedule, precision, checkpoints."""

    steps: int
    """Optimizer steps; the run's length has no sensible default."""
    lr: float
    """Highest learning rate; it depends on the model."""
    weight_decay: float = 0.01
    """Decoupled decay of matrices; biases and one-dimensional parameters never decay."""
    beta1: float = 0.9
    """AdamW's memory of the gradient."""
    beta2: float = 0.95
    """AdamW's memory of the squared gradient."""
    clip: float = 1.0
    """Largest gradient norm per parameter group; 0 does not clip."""
    warmup_steps: int = 10
    """Steps of linear rise to ``lr``."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What follows the warm-up."""
    checkpoint_every: int = 50
    """Steps between checkpoints; 0 writes only the last one."""
    log_every: int = 10
    """Steps between log records; 0 logs only the last step."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """``bf16`` runs matrix products in bfloat16 (autocast); weights and moments keep theirs."""
    grad_accumulation: int = 1
    """Pieces that each batch is computed in; the gradient is that of the whole batch."""
    device: Literal["auto", "cpu"] = "auto"
    """``auto`` takes what accelerate finds; ``cpu`` stays on the CPU even beside a GPU."""

    def __post_init__(self) -> None:
        choices = {
            "schedule": KINDS,
            "precision": ("fp32", "bf16"),
            "device": ("auto", "cpu"),
        }
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                given = getattr(self, key)
                raise ValueError(f"Unknown {key} {given!r}. Known: {', '.join(allowed)}.")
        for key, least in {"steps": 1, "grad_accumulation": 1, "warmup_steps": 0}.items():
            if getattr(self, key) < least:
                raise ValueError(f"{key}={getattr(self, key)}: at least {least} is needed.")
        for key in ("lr", "weight_decay", "clip"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{key}={value}: give a finite number that is not negative.")
        for key in ("beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} has to be in [0, 1).")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training did and what it cost."""

    steps: int
    tokens: int
    """Tokens of all batches (elements of ``input_ids``; scored items if there are none)."""
    seconds: float
    losses: list[float]
    """Training loss of every step."""
    final_loss: float
    """Training loss of the last step."""
    evaluations: list[dict[str, Any]]
    """What ``eval_fn`` returned, each with its ``step``."""
    best_loss: float | None
    """Lowest ``loss`` among the evaluations."""
    best_step: int | None
    parameters: int
    """Number of trained parameters."""
    optimizer: str
    """Kernel that AdamW ran on: fused, foreach, single or default."""
    device: str
    precision: str

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return asdict(self)
