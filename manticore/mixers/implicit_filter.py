"""Hyena's filters: a small network of sines reads a position and says the taps there.

    h(t) = exp(-r t) W_3 s(W_2 s(W_1 s(W_0 z(t)))),          s(x) = sin(f x), f learned
    z(t) = (t, cos 2 pi t, sin 2 pi t),                      t from 0 to 1 over the longest length

(Poli et al., 2023, arXiv:2302.10866, section 3.3; the rates r are spread over the channels, so that
the slowest filter falls to 1 % after 1.5 of the longest length and the fastest after 0.3.)

mad-lab means the cosine and sine of z to have one period, but its frequencies start at 1e-4, so
they are 1 and 0 nearly everywhere, and it trains z; `compat="mad-lab"` has it so.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from manticore.mixers.fresh_weights import uniform_linear

_FALLS_TO, _SLOWEST, _FASTEST = 1e-2, 1.5, 0.3
_FEATURES = 3


class ImplicitFilter(nn.Module):
    """Filters (channels, taps) of any length up to `max_length`.

    Args:
        channels: how many filters.
        width: of the network; the literature counts it as the filter's state.
        max_length: positions that t runs over.
        trains_positions: whether z is a parameter, with mad-lab's frequencies.
    """

    positions: Tensor
    rates: Tensor

    def __init__(
        self,
        channels: int,
        width: int,
        max_length: int,
        trains_positions: bool,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.max_length = max_length
        features = position_features(max_length, 1e-4 if trains_positions else None)
        if trains_positions:
            self.positions = nn.Parameter(features)
        else:
            self.register_buffer("positions", features)
        self.frequency = nn.Parameter(torch.ones(width))
        sizes = [_FEATURES, width, width, width]
        pairs = list(itertools.pairwise(sizes))
        self.maps = nn.ModuleList(
            uniform_linear(d_in, d_out, generator, d_in**-0.5) for d_in, d_out in pairs
        )
        self.offsets = nn.ParameterList(
            torch.empty(d_out).uniform_(-(d_in**-0.5), d_in**-0.5, generator=generator)
            for d_in, d_out in pairs
        )
        self.output = uniform_linear(width, channels, generator, width**-0.5)
        log = math.log(_FALLS_TO)
        rates = torch.linspace(log / _SLOWEST, log / _FASTEST, channels).abs()
        # Saved, though they could be computed: a model that is loaded without having been
        # initialised would find anything here.
        self.register_buffer("rates", rates)

    def forward(self, taps: int) -> Tensor:
        """The first `taps` taps of every filter: (channels, taps)."""
        hidden = self.positions[:taps]
        for linear, offset in zip(self.maps, self.offsets, strict=True):
            hidden = torch.sin(self.frequency * (linear(hidden) + offset))
        time = self.positions[:taps, :1].detach()
        return (self.output(hidden) * torch.exp(-time * self.rates)).t()


def position_features(max_length: int, frequency: float | None) -> Tensor:
    """z(t): (max_length, 3).

    Args:
        frequency: of cosine and sine in radians for each position times 2 pi / max_length, as
            mad-lab has it; None: one period.
    """
    t = torch.linspace(0, 1, max_length)
    if frequency is None:
        angle = 2 * math.pi * t
    else:
        angle = frequency * 2 * math.pi * torch.arange(max_length) / max_length
        return torch.stack([t, torch.cos(angle), -torch.sin(angle)], dim=1)
    return torch.stack([t, torch.cos(angle), torch.sin(angle)], dim=1)


def filter_parameters(channels: int, width: int, max_length: int, trains_positions: bool) -> int:
    """Trainable numbers of an `ImplicitFilter`."""
    network = _FEATURES * width + 2 * width * width + 3 * width + width + width * channels
    return network + (_FEATURES * max_length if trains_positions else 0)


def filter_flops(channels: int, width: int, taps: int) -> int:
    """Operations for each tap of all filters, products alone."""
    return 2 * (_FEATURES * width + 2 * width * width + width * channels)
