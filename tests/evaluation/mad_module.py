"""Modules as a user would write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CausalMean(nn.Module):
    """The mean of all positions so far, mapped linearly."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        counts = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)
        return self.linear(x.cumsum(dim=1) / counts.unsqueeze(-1))


class Oracle(nn.Module):
    """Sees the future."""

    def __init__(self, d_model: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1, keepdim=True).expand_as(x)


class Nowhere(nn.Module):
    """Divides by zero."""

    def __init__(self, d_model: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x / (x - x)


class Demanding(nn.Module):
    """Cannot be built from d_model alone."""

    def __init__(self, d_model: int, depth: int) -> None:
        super().__init__()


class Halving(nn.Module):
    """Returns another shape."""

    def __init__(self, d_model: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::2]


def not_a_class(d_model: int) -> None:
    """Not a module at all."""
