"""One step of a search: the weights on one batch, then the mixture on a batch of its own.

This is first-order bilevel optimisation (DARTS, arXiv 1806.09055, equation 7 with xi = 0). The
mixture has its own optimizer: no weight decay, its own clipping and learning rate, and a warm-up
during which it does not move, because the branch that learns the easy part of the loss first would
otherwise win for the wrong reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from manticore.evaluation.language import causal_loss
from manticore.hybrids.mixture_optimizers import ExponentiatedGradient, clip_mixture
from manticore.hybrids.modeling_base import ManticorePreTrainedModel
from manticore.training import LoopState, build_adamw, learning_rate
from manticore.training.optimizers import clip_gradients, set_learning_rate


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How a search moves weights and mixture."""

    steps: int = 100
    """Steps, each with one batch for the weights and one for the mixture."""
    lr: float = 2e-3
    """Peak learning rate of the weights (AdamW)."""
    weight_decay: float = 0.01
    """Of the weights; the mixture has none."""
    clip: float = 1.0
    """Largest gradient norm of the weights."""
    mixture_lr: float = 0.05
    """Learning rate of the mixture."""
    mixture_clip: float = 1.0
    """Largest gradient norm of the mixture."""
    warmup_steps: int = 10
    """Steps before the mixture moves; the weights' learning rate rises as long."""
    train_weights: bool = True
    """False searches the mixture of the frozen hybrid."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    seed: int = 0
    """Of dropout."""


class BilevelStep:
    """One step: weights on a training batch, then the mixture on a batch of its own."""

    def __init__(
        self,
        hybrid: ManticorePreTrainedModel,
        train: Callable[[int], Mapping[str, Any]],
        valid: Callable[[int], Mapping[str, Any]],
        method: str,
        settings: SearchSettings,
    ) -> None:
        self.hybrid, self.train, self.valid, self.settings = hybrid, train, valid, settings
        self.device = next(hybrid.parameters()).device
        self.mixture_parameters: list[nn.Parameter] = hybrid.mixture_parameters()
        self.optimizers: dict[str, Optimizer] = {"mixture": self._mixture_optimizer(method)}
        if settings.train_weights:
            self.optimizers["weights"] = self._weight_optimizer()
        self.extra: dict[str, Any] = {"trajectory": []}
        self.log: Callable[[dict[str, Any]], None] | None = None
        hybrid.train(settings.train_weights)

    @property
    def trajectory(self) -> list[dict[str, Any]]:
        """One entry for each step so far."""
        return self.extra["trajectory"]

    def state(self) -> LoopState:
        """What a resumed search needs back."""
        return LoopState(
            modules={"hybrid": self.hybrid}, optimizers=self.optimizers, extra=self.extra
        )

    def __call__(self, step: int) -> dict[str, Any]:
        metrics = self._train_weights(step) if self.settings.train_weights else {}
        tokens = metrics.get("tokens", 0)
        metrics |= self._move_mixture(step)
        metrics["tokens"] += tokens
        metrics.setdefault("loss", metrics["arch_loss"])
        entry = {"step": step + 1, **metrics, **self.hybrid.backbone.rows.as_lists()}
        self.trajectory.append(entry)
        if self.log is not None:
            self.log(entry)
        return metrics

    def _train_weights(self, step: int) -> dict[str, Any]:
        settings, batch = self.settings, self._batch(self.train, step)
        rate = learning_rate(
            step, steps=settings.steps, base=settings.lr, warmup=settings.warmup_steps
        )
        optimizer = self.optimizers["weights"]
        set_learning_rate(optimizer, rate)
        loss = causal_loss(self.hybrid, batch)
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        loss.backward(inputs=weights)
        norm = clip_gradients(optimizer)
        if loss.isfinite() and math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.item(), "grad_norm": norm, "tokens": batch["input_ids"].numel()}

    def _move_mixture(self, step: int) -> dict[str, Any]:
        batch = self._batch(self.valid, step)
        loss = causal_loss(self.hybrid, batch)
        metrics = {"arch_loss": loss.item(), "tokens": batch["input_ids"].numel()}
        if step >= self.settings.warmup_steps and loss.isfinite():
            # Only the mixture's gradient is asked for, so no weight gradient is computed.
            loss.backward(inputs=self.mixture_parameters)
            norm = clip_mixture(self.mixture_parameters, self.settings.mixture_clip)
            if math.isfinite(norm):  # else one spike would stay in Adam's moments for ever
                self.optimizers["mixture"].step()
            self.optimizers["mixture"].zero_grad(set_to_none=True)
        return metrics

    def _batch(self, source: Callable[[int], Mapping[str, Any]], step: int) -> dict[str, Any]:
        batch = source(step)
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def _mixture_optimizer(self, method: str) -> Optimizer:
        lr = self.settings.mixture_lr
        if method == "gaea":
            return ExponentiatedGradient(self.mixture_parameters, lr=lr)
        # DARTS's choice for the architecture: a short memory, no decay.
        return torch.optim.Adam(self.mixture_parameters, lr=lr, betas=(0.5, 0.999))

    def _weight_optimizer(self) -> Optimizer:
        mixture = {id(p) for p in self.mixture_parameters}
        weights = [p for p in self.hybrid.parameters() if p.requires_grad and id(p) not in mixture]
        return build_adamw(
            weights,
            lr=self.settings.lr,
            weight_decay=self.settings.weight_decay,
            betas=(0.9, 0.95),
            clip=self.settings.clip,
        )
