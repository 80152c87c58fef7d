"""Linear maps whose first weights come from a given generator, and from no other randomness."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import skip_init


def xavier_linear(
    d_in: int, d_out: int, generator: torch.Generator | None, gain: float = 2**-2.5
) -> nn.Linear:
    """A map without bias, uniform with Xavier's variance times gain squared.

    The default gain is what the linear attentions of flash-linear-attention were published with.
    """
    linear = _unset(d_in, d_out)
    nn.init.xavier_uniform_(linear.weight, gain, generator=generator)
    return linear


def orthogonal_linear(
    d_in: int, d_out: int, generator: torch.Generator | None, gain: float = 1.0
) -> nn.Linear:
    """A map without bias that keeps lengths up to `gain`, times sqrt(d_out / d_in) if it widens."""
    linear = _unset(d_in, d_out)
    nn.init.orthogonal_(linear.weight, gain * max(1.0, d_out / d_in) ** 0.5, generator=generator)
    return linear


def uniform_linear(
    d_in: int, d_out: int, generator: torch.Generator | None, bound: float
) -> nn.Linear:
    """A map without bias, uniform in [-bound, bound]."""
    linear = _unset(d_in, d_out)
    nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
    return linear


def _unset(d_in: int, d_out: int) -> nn.Linear:
    # nn.Linear's own constructor would advance torch's default generator.
    linear = skip_init(nn.Linear, d_in, d_out, bias=False)
    assert isinstance(linear, nn.Linear)
    return linear
