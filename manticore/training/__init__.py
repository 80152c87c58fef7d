"""Training: one loop, its optimizers, schedules and checkpoints, and a pool for sweeps.

The room knows ``nn.Module`` and optimizers; it knows no model by name. Names are
loaded on first use, so that a sweep's parent process starts without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manticore.training.checkpoints import Checkpoint as Checkpoint
    from manticore.training.checkpoints import load_checkpoint as load_checkpoint
    from manticore.training.checkpoints import load_weights as load_weights
    from manticore.training.checkpoints import save_checkpoint as save_checkpoint
    from manticore.training.checkpoints import save_weights as save_weights
    from manticore.training.config import TrainConfig as TrainConfig
    from manticore.training.config import TrainResult as TrainResult
    from manticore.training.loop import train as train
    from manticore.training.optimizers import ParameterGroup as ParameterGroup
    from manticore.training.optimizers import build_adamw as build_adamw
    from manticore.training.pool import Trial as Trial
    from manticore.training.pool import TrialError as TrialError
    from manticore.training.pool import run_trials as run_trials
    from manticore.training.schedules import learning_rate as learning_rate
    from manticore.training.state import LoopResult as LoopResult
    from manticore.training.state import LoopState as LoopState
    from manticore.training.state import NonFiniteLossError as NonFiniteLossError
    from manticore.training.stepping import run_loop as run_loop

_HOMES = {
    "Checkpoint": "checkpoints",
    "load_checkpoint": "checkpoints",
    "load_weights": "checkpoints",
    "save_checkpoint": "checkpoints",
    "save_weights": "checkpoints",
    "TrainConfig": "config",
    "TrainResult": "config",
    "train": "loop",
    "ParameterGroup": "optimizers",
    "build_adamw": "optimizers",
    "Trial": "pool",
    "TrialError": "pool",
    "run_trials": "pool",
    "learning_rate": "schedules",
    "LoopResult": "state",
    "LoopState": "state",
    "NonFiniteLossError": "state",
    "run_loop": "stepping",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
