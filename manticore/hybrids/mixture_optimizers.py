"""Optimizers for mixtures: points of the simplex, stored as log weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

LARGEST_MOVE = 9.0  # no weight changes by more than a factor e^9 in one step


class ExponentiatedGradient(Optimizer):
    """Exponentiated gradient on the rows of a mixture: the GAEA update (arXiv 2004.07802).

        a_k <- a_k exp(-lr dL/da_k) / sum_j a_j exp(-lr dL/da_j)

    The parameters hold log a. Their gradient is a_k (dL/da_k - sum_j a_j dL/da_j), so dividing it
    by a_k gives dL/da_k up to a constant of the row, which the normalisation removes. Rows stay
    on the simplex after every step, exact zeros stay zero, and other weights stay above `floor`.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, floor: float = 1e-5) -> None:
        super().__init__(params, {"lr": lr, "floor": floor})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step; parameters without a gradient stay."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group["lr"], group["floor"])

    @staticmethod
    def _update(parameter: Tensor, gradient: Tensor, lr: float, floor: float) -> None:
        log_weights = parameter.log_softmax(dim=-1)
        alive = ~torch.isneginf(log_weights)
        gradient = torch.where(alive, gradient / log_weights.exp(), 0.0)
        move = (-lr * gradient).nan_to_num().clamp(-LARGEST_MOVE, LARGEST_MOVE)
        moved = (log_weights + move).log_softmax(dim=-1)
        lowest = torch.tensor(floor, device=moved.device).log()
        moved = torch.where(alive, moved.clamp(min=lowest), moved)
        parameter.copy_(moved.log_softmax(dim=-1))


def clip_mixture(parameters: Iterable[nn.Parameter], largest_norm: float) -> float:
    """Clip the mixture's gradient on its own and return its norm before.

    On its own, so that the weights' gradient has no say in it.
    """
    return float(nn.utils.clip_grad_norm_(list(parameters), largest_norm))
