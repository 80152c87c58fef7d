"""Where the time steps softplus(W x + b) of state spaces and gated delta rules start."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FIRST_STEPS = (1e-3, 1e-1)
"""Published (arXiv:2312.00752, section 3.6): at a rate of one, memories of 10 to 1,000 tokens."""


def first_step_bias(size: int, generator: torch.Generator | None) -> Tensor:
    """A bias b (size) whose softplus is log-uniform over `FIRST_STEPS`."""
    low, high = (math.log(step) for step in FIRST_STEPS)
    return inverse_softplus(torch.empty(size).uniform_(low, high, generator=generator).exp())


def inverse_softplus(y: Tensor) -> Tensor:
    """x with softplus(x) = y, for y > 0."""
    return y + torch.log(-torch.expm1(-y))
