"""One optimizer step on one batch, computed in pieces and on one or several processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from manticore.training.batches import Batch, move_batch, split_batch
from manticore.training.config import TrainConfig
from manticore.training.optimizers import clip_gradients, set_learning_rate
from manticore.training.schedules import learning_rate

if TYPE_CHECKING:
    from accelerate import Accelerator

LossFunction = Callable[[nn.Module, Batch], Tensor]


class GradientStep:
    """One optimizer step on the batch of a step."""

    def __init__(
        self,
        model: nn.Module,
        batch_at: Callable[[int], Batch],
        config: TrainConfig,
        accelerator: Accelerator,
        device: torch.device,
        optimizer: Optimizer,
        loss_fn: LossFunction,
        count_items: Callable[[Batch], int],
    ) -> None:
        self.model, self.batch_at, self.config = model, batch_at, config
        self.accelerator, self.device, self.optimizer = accelerator, device, optimizer
        self.loss_fn, self.count_items = loss_fn, count_items
        self.is_parallel = accelerator.num_processes > 1
        # Alone, the model is used as it is: prepare would leave its forward wrapped.
        self.runner = accelerator.prepare(model) if self.is_parallel else model

    def __call__(self, step: int) -> dict[str, Any]:
        config = self.config
        lr = learning_rate(
            step,
            steps=config.steps,
            base=config.lr,
            warmup=config.warmup_steps,
            kind=config.schedule,
        )
        set_learning_rate(self.optimizer, lr)
        self.model.zero_grad(set_to_none=True)
        loss, tokens = self._backward(step, self.batch_at(step))
        norm = clip_gradients(self.optimizer, self.accelerator.clip_grad_norm_)
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizer.step()
        return {"loss": loss, "lr": lr, "grad_norm": norm, "tokens": tokens}

    def _backward(self, step: int, batch: Batch) -> tuple[float, int]:
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        pieces = split_batch(batch, world * self.config.grad_accumulation)
        items = self.count_items(batch)
        if items == 0:
            raise ValueError(
                f"The batch of step {step} has nothing to score: every label is -100. "
                "Check the data, or make the sequences longer than their prompts."
            )
        total = torch.zeros((), device=self.device)
        mine = pieces[rank::world]
        for number, piece in enumerate(mine):
            share = self.count_items(piece) / items
            if share == 0 and not self.is_parallel:
                continue  # a mean over nothing is NaN
            last = number == len(mine) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.runner):
                with self._autocast():
                    loss = self.loss_fn(self.runner, move_batch(piece, self.device))
                # Gradients are averaged over processes, shares are of the whole batch.
                self.accelerator.backward(loss * (share * world))
            total += loss.detach().float() * share
        if self.is_parallel:
            total = self.accelerator.reduce(total, reduction="sum")
        ids = batch.get("input_ids")
        return float(total), ids.numel() if isinstance(ids, Tensor) else items

    def _autocast(self) -> Any:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def model_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss that a Hugging Face model computes from its own labels."""
    loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise ValueError(
            f"{type(model).__name__} returned no loss. "
            "Put 'labels' into the batch, or pass loss_fn."
        )
    return loss
