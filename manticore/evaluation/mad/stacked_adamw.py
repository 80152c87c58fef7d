"""AdamW for many trials at once, each with its own rate, decay and clipping.

Loshchilov and Hutter, 2019 (arXiv:1711.05101), algorithm 2, on a matrix with one row per trial;
the numbers are those of `torch.optim.AdamW` and `torch.nn.utils.clip_grad_norm_` for each row.

Legend: P trials, N parameters of one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from manticore.evaluation.mad.stack import Stack
from manticore.evaluation.mad.training_types import Point, TrainSettings
from manticore.training.optimizers import decays


class StackedAdamW:
    """Optimizer of a `Stack`; it writes the stack's matrix of weights in place."""

    def __init__(self, stack: Stack, points: Sequence[Point], settings: TrainSettings) -> None:
        self.stack, self.settings = stack, settings
        weights = stack.weights
        self.mean, self.square = torch.zeros_like(weights), torch.zeros_like(weights)
        self.points = list(points)
        self._unused: list[str] = []
        self.decayed = self._where_decay_acts()  # (N,), 1 where it does
        self._set_columns()

    @torch.no_grad()
    def step(self, gradients: Tensor, step: int) -> None:
        """Take the step with this index, 0 for the first.

        Args:
            gradients: (P, N); it is used up.
        """
        settings, weights = self.settings, self.stack.weights
        beta1, beta2 = settings.betas
        if settings.grad_clip:
            norms = gradients.norm(dim=1, keepdim=True)
            gradients.mul_((settings.grad_clip / (norms + 1e-6)).clamp(max=1.0))
        rates = self._rates(step)  # (P, 1)
        if self._unused != self.stack.unused:
            self._unused = self.stack.unused
            self.decayed = self._where_decay_acts()
        if self.any_decay:
            weights.addcmul_(weights * self.decayed, rates * self.decay, value=-1)
        self.mean.lerp_(gradients, 1 - beta1)
        self.square.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
        scale = (1 - beta2 ** (step + 1)) ** 0.5
        denominator = (self.square.sqrt() / scale).add_(settings.eps)
        update = torch.div(self.mean, denominator, out=denominator)
        weights.addcmul_(update, rates / (1 - beta1 ** (step + 1)), value=-1)

    def keep(self, rows: list[int]) -> None:
        """Go on with these trials only."""
        self.mean, self.square = self.mean[rows], self.square[rows]
        self.points = [self.points[row] for row in rows]
        self._set_columns()

    def _where_decay_acts(self) -> Tensor:
        parts = [
            torch.full(
                (parameter.numel(),),
                float(
                    (self.settings.decay == "all" or decays(parameter)) and name not in self._unused
                ),
            )
            for name, parameter in self.stack.parameters.items()
        ]
        return torch.cat(parts).to(self.stack.weights.device)

    def _set_columns(self) -> None:
        device = self.stack.weights.device
        self.decay = torch.tensor([[p.weight_decay] for p in self.points], device=device)  # (P, 1)
        self.any_decay = any(point.weight_decay for point in self.points)

    def _rates(self, step: int) -> Tensor:
        rates = [[self.settings.learning_rate(step, point.lr)] for point in self.points]
        return torch.tensor(rates, device=self.stack.weights.device)
