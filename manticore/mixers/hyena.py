"""Hyena: long convolutions between two gates (Poli et al., 2023, arXiv:2302.10866, equation 4).

    x0, x1, v = conv(repeat(W_in u))                         a short filter for each channel
    y = x0 * (h * (x1 v) + b (x1 v));   out = W_out y        "h *" convolves along time

The filters h come from `ImplicitFilter`. There are `groups` times as many channels as the input
map makes: each of its channels is repeated for several filters, as in mad-lab.

A convolution has no finite state: what it keeps of the past is the past, so a token costs as much
memory as in attention, and a sequence may not be longer than `max_length`.

    B batch, T time, C channels
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manticore.mixers.fresh_weights import uniform_linear
from manticore.mixers.implicit_filter import ImplicitFilter, filter_flops, filter_parameters
from manticore.mixers.interface import Mixer, MixerSpec, State
from manticore.mixers.long_convolution import fast_length, long_convolution
from manticore.mixers.precision import widen
from manticore.mixers.short_conv import ShortConv
from manticore.mixers.token_shift import last_real_tokens, zero_padding


@dataclass(frozen=True, kw_only=True)
class HyenaSpec(MixerSpec):
    """Settings of Hyena, at mad-lab's sizes."""

    groups: int = 4
    """Channels as a multiple of d_model: filters for each channel of the input map."""
    filter_width: int = 4
    """Width of the network that says the filters; the iso-state rule counts channels times it."""
    conv_size: int = 3
    """Taps of the short filter."""
    max_length: int = 2048
    """Longest sequence, padding included; the filters are stretched over it."""
    compat: Literal["fixed", "mad-lab"] = "fixed"
    """`mad-lab`: the positions that the filters read are trained and nearly constant."""

    def __post_init__(self) -> None:
        for name in ("d_model", "groups", "filter_width", "conv_size", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.compat not in ("fixed", "mad-lab"):
            raise ValueError(f"compat={self.compat!r} must be 'fixed' or 'mad-lab'.")

    @property
    def channels(self) -> int:
        """Channels C of the long convolution."""
        return self.groups * self.d_model

    def build(self, generator: torch.Generator | None = None) -> Mixer:
        return Hyena(self, generator)

    def num_parameters(self) -> int:
        d_model, channels = self.d_model, self.channels
        maps = 3 * d_model * d_model + 3 * d_model + channels * d_model + d_model
        short = 3 * channels * (self.conv_size + 1)
        filters = filter_parameters(
            channels, self.filter_width, self.max_length, self.compat == "mad-lab"
        )
        return maps + short + channels + filters

    def state_size(self, seq_len: int) -> int:
        return self.channels * (3 * (self.conv_size - 1) + seq_len)

    def mixing_state_size(self, seq_len: int) -> int:
        return self.channels * self.filter_width

    def flops_per_token(self, seq_len: int) -> int:
        d_model, channels = self.d_model, self.channels
        maps = 2 * (3 * d_model * d_model + channels * d_model + 3 * channels * self.conv_size)
        return maps + convolution_flops(channels, self.filter_width, seq_len) + 2 * channels


class Hyena(Mixer):
    """The token mixer; state: `before` (batch, taps - 1, 3 C), `past` (batch, time, C)."""

    spec: HyenaSpec

    def __init__(self, spec: HyenaSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec)
        d_model, channels = spec.d_model, spec.channels
        self.input = uniform_linear(d_model, 3 * d_model, generator, d_model**-0.5)
        self.input_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.conv = ShortConv(3 * channels, spec.conv_size, generator)
        self.conv_bias = nn.Parameter(torch.zeros(3 * channels))
        self.filter = ImplicitFilter(
            channels, spec.filter_width, spec.max_length, spec.compat == "mad-lab", generator
        )
        self.present = nn.Parameter(torch.randn(channels, generator=generator))
        self.output = uniform_linear(channels, d_model, generator, channels**-0.5)
        self.output_bias = nn.Parameter(torch.zeros(d_model))

    def mix(
        self,
        x: Tensor,
        state: State | None,
        padding_mask: Tensor | None,
        positions: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, State | None]:
        before, past = (None, None) if state is None else (state["before"], state["past"])
        check_length(x, past, self.spec.max_length)
        wide = self.input(x) + self.input_bias
        wide = zero_padding(wide.repeat_interleave(self.spec.groups, dim=-1), padding_mask)
        wide, before = self.conv(wide, before, padding_mask, wants_state)
        x0, x1, v = (wide + self.conv_bias).chunk(3, dim=-1)  # each (B, T, C)
        u = zero_padding(x1 * v, padding_mask)  # the bias has filled the padding again
        seen = u if past is None else torch.cat([past.to(u.dtype), u], dim=1)
        filters = with_present(self.filter(seen.shape[1]), self.present)
        mixed = long_convolution(seen, filters, x.shape[1])
        y = self._read(x0 * mixed.to(u.dtype), x)
        if not wants_state:
            return y, None
        assert before is not None
        return y, {"before": before, "past": grown_past(u, past, padding_mask)}

    def _read(self, y: Tensor, x: Tensor) -> Tensor:
        """Map the channels (B, T, C) to the output; `x` is the mixer's input."""
        return self.output(y) + self.output_bias


def with_present(filters: Tensor, present: Tensor) -> Tensor:
    """Filters (channels, taps) with the weight b of the present added to the first tap."""
    filters = widen(filters)
    first = filters[:, :1] + widen(present).unsqueeze(1)
    return torch.cat([first, filters[:, 1:]], dim=1)


def check_length(x: Tensor, past: Tensor | None, max_length: int) -> None:
    """Raise when a piece and what came before it are longer than the filters."""
    seen = x.shape[1] + (0 if past is None else past.shape[1])
    if seen > max_length:
        raise ValueError(
            f"A sequence of {seen} tokens is longer than this mixer's max_length={max_length}. "
            "Build it with a larger max_length, or give shorter sequences."
        )


def grown_past(u: Tensor, past: Tensor | None, padding_mask: Tensor | None) -> Tensor:
    """All that the next piece convolves with, each row's last real position last.

    (batch, time so far, channels); zeros come first where a row was padded.
    """
    if past is None:
        past = u.new_zeros(u.shape[0], 0, u.shape[2])
    if padding_mask is None:
        return torch.cat([past.to(u.dtype), u], dim=1)
    count = past.shape[1] + u.shape[1]
    padded = F.pad(past, (0, 0, u.shape[1], 0))  # what is kept grows by the whole piece
    return last_real_tokens(u, padded, count, padding_mask)


def convolution_flops(channels: int, filter_width: int, seq_len: int) -> int:
    """Operations per token of a long convolution and of making its filters, gates left out.

    Three transforms of real numbers, a complex product for each frequency, one network for all
    rows of a batch (counted as if for one).
    """
    size = fast_length(2 * seq_len - 1)
    transforms = 3 * 2.5 * size * max(size.bit_length() - 1, 1) * channels
    product = 6 * (size // 2 + 1) * channels
    return round((transforms + product) / seq_len) + filter_flops(channels, filter_width, seq_len)
