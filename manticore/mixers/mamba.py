"""Mamba: a selective state space behind a short convolution (Gu & Dao, 2023, arXiv:2312.00752).

x, z = W_in u;   x = silu(conv(x))
r, B, C = W_x x;   dt = softplus(W_dt r + b)             the selection, section 3.2
h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t;   y_t = C_t h_t + D x_t
out = W_out (y silu(z))

B batch, T time, E inner width, N states for each channel
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manticore.mixers.fresh_weights import uniform_linear
from manticore.mixers.interface import Mixer, MixerSpec, State
from manticore.mixers.precision import widen
from manticore.mixers.selective_scan_choice import (
    SelectiveKernel,
    check_selective_kernel,
    choose_selective_scan,
)
from manticore.mixers.short_conv import ShortConv
from manticore.mixers.time_steps import first_step_bias
from manticore.mixers.token_shift import zero_padding


@dataclass(frozen=True, kw_only=True)
class MambaSpec(MixerSpec):
    """Settings of Mamba, at mad-lab's sizes."""

    expand: int = 2
    """Inner width as a multiple of d_model."""
    d_state: int = 4
    """States N of each channel; the published models have 16."""
    conv_size: int = 4
    """Taps of the short convolution."""
    dt_rank: int | None = None
    """Rank of the map that gives the time steps; None: d_model / 16, rounded up."""
    compat: Literal["fixed", "mad-lab"] = "fixed"
    """`mad-lab`: the bias of the time steps starts at 0, as its autoencoder and its language
    models before December 2024 had it, instead of at steps of 0.001 to 0.1."""
    kernel: SelectiveKernel = "torch"
    """What runs the scan: torch, or mamba-ssm (its authors' kernels, on a GPU)."""

    def __post_init__(self) -> None:
        for name in ("d_model", "expand", "d_state", "conv_size", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.compat not in ("fixed", "mad-lab"):
            raise ValueError(f"compat={self.compat!r} must be 'fixed' or 'mad-lab'.")
        check_selective_kernel(self.kernel)

    @property
    def inner_width(self) -> int:
        """Channels E of the scan."""
        return self.expand * self.d_model

    @property
    def rank(self) -> int:
        """Rank of the map that gives the time steps."""
        return math.ceil(self.d_model / 16) if self.dt_rank is None else self.dt_rank

    def build(self, generator: torch.Generator | None = None) -> Mamba:
        return Mamba(self, generator)

    def num_parameters(self) -> int:
        inner, states = self.inner_width, self.d_state
        maps = 3 * self.d_model * inner + inner * (self.rank + 2 * states) + self.rank * inner
        return maps + inner * (self.conv_size + 1 + 1 + states + 1)  # conv and bias, b, A, D

    def state_size(self, seq_len: int) -> int:
        return self.inner_width * (self.d_state + self.conv_size - 1)

    def mixing_state_size(self, seq_len: int) -> int:
        return self.inner_width * self.d_state

    def flops_per_token(self, seq_len: int) -> int:
        inner, states = self.inner_width, self.d_state
        maps = 3 * self.d_model * inner + inner * (self.rank + 2 * states) + self.rank * inner
        # Of the scan every elementary operation, as in `selective_scan_naive`.
        return 2 * (maps + inner * self.conv_size) + inner * (7 * states + 5)


class Mamba(Mixer):
    """The token mixer; state: `before` (batch, taps - 1, E) and `scan` (batch, E, N) in float32."""

    spec: MambaSpec

    def __init__(self, spec: MambaSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec)
        inner, rank = spec.inner_width, spec.rank
        bound = spec.d_model**-0.5
        self.input = uniform_linear(spec.d_model, 2 * inner, generator, bound)
        self.conv = ShortConv(inner, spec.conv_size, generator)
        self.conv_bias = nn.Parameter(_uniform(inner, spec.conv_size**-0.5, generator))
        self.select = uniform_linear(inner, rank + 2 * spec.d_state, generator, inner**-0.5)
        self.time_step = uniform_linear(rank, inner, generator, rank**-0.5)
        steps = first_step_bias(inner, generator)
        self.step_bias = nn.Parameter(steps.zero_() if spec.compat == "mad-lab" else steps)
        states = torch.arange(1, spec.d_state + 1, dtype=torch.float32)
        self.log_rate = nn.Parameter(states.log().expand(inner, -1).clone())  # S4D-real: A = -n
        self.skip = nn.Parameter(torch.ones(inner))
        self.output = uniform_linear(inner, spec.d_model, generator, inner**-0.5)
        self.scan = choose_selective_scan(spec.kernel)

    def mix(
        self,
        x: Tensor,
        state: State | None,
        padding_mask: Tensor | None,
        positions: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, State | None]:
        x, z = self.input(zero_padding(x, padding_mask)).chunk(2, dim=-1)  # (B, T, E)
        before, scan = (None, None) if state is None else (state["before"], state["scan"])
        x, before = self.conv(x, before, padding_mask, wants_state)
        # Zero again: the bias has filled the padding, and what is not zero enters the state.
        x = zero_padding(F.silu(x + self.conv_bias), padding_mask)
        dt, B, C = self._select(x, padding_mask)
        y, scan = self.scan(
            x, dt, -torch.exp(widen(self.log_rate)), B, C, self.skip, z, initial_state=scan
        )
        y = self.output(y)
        if not wants_state:
            return y, None
        assert before is not None
        return y, {"before": before, "scan": scan}

    def _select(self, x: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        sizes = [self.spec.rank, self.spec.d_state, self.spec.d_state]
        low_rank, B, C = torch.split(self.select(x), sizes, dim=-1)
        low_rank, B, C = self._normed(low_rank, B, C)
        dt = F.softplus(widen(self.time_step(low_rank)) + widen(self.step_bias))
        # A step of no length neither forgets nor writes.
        return zero_padding(dt, padding_mask), B, C

    def _normed(self, low_rank: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A hook for norms of the selection."""
        return low_rank, B, C


def _uniform(size: int, bound: float, generator: torch.Generator | None) -> Tensor:
    return torch.empty(size).uniform_(-bound, bound, generator=generator)
