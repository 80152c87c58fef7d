"""A tiny model with dropout and its data, shared by the tests of training."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manticore.training import TrainConfig, train


class ToyModel(nn.Module):
    """A regression with dropout, a frozen layer, a buffer and a matrix used twice."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(4, width)
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(width, width, bias=False)
        self.tied = nn.Linear(width, width, bias=False)
        self.tied.weight = self.last.weight
        self.head = nn.Linear(width, 1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        hidden = self.dropout(torch.tanh(self.norm(self.frozen(self.first(x)))))
        return self.head(self.tied(torch.relu(self.last(hidden))))


def toy_model(seed: int = 0) -> ToyModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ToyModel()


def batch_at(step: int, rows: int = 16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(rows, 4, generator=generator)
    return {"x": x, "y": torch.sin(x.sum(-1, keepdim=True))}


def toy_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.mse_loss(model(batch["x"]), batch["y"])


def toy_config(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"steps": 23, "lr": 0.01, "checkpoint_every": 4, "log_every": 1}
    return TrainConfig(**{**settings, **changes})


def flat_checkpoint(folder: Path) -> dict[str, Any]:
    """Read every tensor and the settings of the newest checkpoint, straight from its files."""
    from safetensors.torch import load_file

    newest = max(folder.glob("step-*"))
    tensors: dict[str, Any] = {}
    for file in ("weights", "state"):
        tensors |= load_file(newest / f"{file}.safetensors")
    record = json.loads((newest / "checkpoint.json").read_text())
    return {"step": record["step"], "optimizers": record["optimizers"], **tensors}


def train_and_die(folder: str, dying_step: int) -> None:
    """Entry of a subprocess that kills itself, without a chance to clean up, in a step."""

    def deadly(step: int) -> dict[str, Tensor]:
        if step == dying_step:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch_at(step)

    train(toy_model(), deadly, toy_config(), folder=folder, loss_fn=toy_loss, seed=3)


if __name__ == "__main__":
    train_and_die(sys.argv[1], int(sys.argv[2]))
