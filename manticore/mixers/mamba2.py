"""Mamba-2: one decay for each head, so that its scan is made of products of matrices.

    z, (x, B, C), r = W_in u;   x, B, C = silu(conv(x, B, C))
    dt = softplus(r + b);   a = exp(-exp(A) dt)                    one number for each head
    S_t = a_t S_{t-1} + B_t (dt_t x_t)^T;   y_t = S_t^T C_t + D x_t
    out = W_out RMSNorm(y silu(z))

(Dao & Gu, 2024, arXiv:2405.21060, section 7.)
It is linear attention with decay whose keys are B, queries C and values dt x, and `decayed_scan`
runs it, with its naive twin there.

    B batch, T time, E inner width, H heads, P channels of a head, G groups, N states per channel
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manticore.mixers.fresh_weights import uniform_linear
from manticore.mixers.interface import Mixer, MixerSpec, State
from manticore.mixers.precision import widen
from manticore.mixers.scan_choice import Kernel, check_kernel, choose_scan
from manticore.mixers.short_conv import ShortConv
from manticore.mixers.time_steps import first_step_bias
from manticore.mixers.token_shift import zero_padding

_RATES = (1.0, 16.0)
"""Where exp(A) starts, as published: with the steps, memories of half a token to a thousand."""


@dataclass(frozen=True, kw_only=True)
class Mamba2Spec(MixerSpec):
    """Settings of Mamba-2; the state is as large as that of Mamba at mad-lab's sizes."""

    expand: int = 2
    """Inner width as a multiple of d_model."""
    d_state: int = 4
    """States N of each channel; the published models have 64 to 256."""
    head_dim: int = 16
    """Channels P of a head, which share a decay; the published models have 64."""
    n_groups: int = 1
    """Groups of heads; those of one share B and C, and the norm is taken over each."""
    conv_size: int = 4
    """Taps of the short convolution."""
    norm_eps: float = 1e-5
    """Added to the mean square in the output's norm."""
    kernel: Kernel = "torch"
    """What runs the scan: torch, or fla (flash-linear-attention, on a GPU)."""

    def __post_init__(self) -> None:
        for name in ("d_model", "expand", "d_state", "head_dim", "n_groups", "conv_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.inner_width % self.head_dim:
            raise ValueError(
                f"head_dim={self.head_dim} does not divide expand * d_model = "
                f"{self.inner_width}. Choose a divisor."
            )
        if self.n_heads % self.n_groups:
            raise ValueError(
                f"n_groups={self.n_groups} does not divide the {self.n_heads} heads that "
                f"head_dim={self.head_dim} gives. Choose a divisor, such as 1."
            )
        if self.norm_eps <= 0:
            raise ValueError(f"norm_eps={self.norm_eps} must be greater than 0, such as 1e-5.")
        check_kernel(self.kernel)

    @property
    def inner_width(self) -> int:
        """Channels E of the scan."""
        return self.expand * self.d_model

    @property
    def n_heads(self) -> int:
        """Heads H."""
        return self.inner_width // self.head_dim

    @property
    def conv_channels(self) -> int:
        """Channels of the short convolution: x, and B and C of every group."""
        return self.inner_width + 2 * self.n_groups * self.d_state

    @property
    def _maps(self) -> int:
        """Numbers in both matrices."""
        into = self.inner_width + self.conv_channels + self.n_heads
        return self.d_model * (into + self.inner_width)

    def build(self, generator: torch.Generator | None = None) -> Mamba2:
        return Mamba2(self, generator)

    def num_parameters(self) -> int:
        conv = self.conv_channels * (self.conv_size + 1)
        return self._maps + conv + 3 * self.n_heads + self.inner_width  # b, A, D and the norm

    def state_size(self, seq_len: int) -> int:
        tail = (self.conv_size - 1) * self.conv_channels
        return self.mixing_state_size(seq_len) + tail

    def mixing_state_size(self, seq_len: int) -> int:
        return self.inner_width * self.d_state

    def flops_per_token(self, seq_len: int) -> int:
        # Decay, write and read: one, two and two operations per number of the state.
        scan = 5 * self.mixing_state_size(seq_len)
        return 2 * (self._maps + self.conv_channels * self.conv_size) + scan


class Mamba2(Mixer):
    """The token mixer.

    Its state is `before` (batch, taps - 1, channels of the short convolution) and `memory`
    (batch, H, N, P), float32.
    """

    spec: Mamba2Spec

    def __init__(self, spec: Mamba2Spec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec)
        d_model, inner, channels = spec.d_model, spec.inner_width, spec.conv_channels
        bound = spec.conv_size**-0.5
        self.input = uniform_linear(
            d_model, inner + channels + spec.n_heads, generator, d_model**-0.5
        )
        self.conv = ShortConv(channels, spec.conv_size, generator)
        self.conv_bias = nn.Parameter(
            torch.empty(channels).uniform_(-bound, bound, generator=generator)
        )
        rates = torch.empty(spec.n_heads).uniform_(*_RATES, generator=generator)
        self.log_rate = nn.Parameter(rates.log())
        self.step_bias = nn.Parameter(first_step_bias(spec.n_heads, generator))
        self.skip = nn.Parameter(torch.ones(spec.n_heads))
        self.norm_weight = nn.Parameter(torch.ones(inner))
        self.output = uniform_linear(inner, d_model, generator, inner**-0.5)
        self.scan = choose_scan(spec.kernel)

    def mix(
        self,
        x: Tensor,
        state: State | None,
        padding_mask: Tensor | None,
        positions: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, State | None]:
        spec = self.spec
        before, memory = (None, None) if state is None else (state["before"], state["memory"])
        sizes = [spec.inner_width, spec.conv_channels, spec.n_heads]
        z, xBC, dt = self.input(zero_padding(x, padding_mask)).split(sizes, dim=-1)
        xBC, before = self.conv(xBC, before, padding_mask, wants_state)
        y, memory = self._scan(F.silu(xBC + self.conv_bias), dt, memory, padding_mask)
        y = self.output(self._norm(y, z).to(x.dtype))
        if not wants_state:
            return y, None
        assert before is not None
        return y, {"before": before, "memory": memory}

    def _scan(
        self, xBC: Tensor, dt: Tensor, memory: Tensor | None, padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(B, T, E) in float32 or better, the skip included, and the memory after it."""
        spec, group = self.spec, self.spec.n_groups * self.spec.d_state
        x, B, C = xBC.split([spec.inner_width, group, group], dim=-1)
        # A step of no length neither forgets nor writes.
        dt = zero_padding(F.softplus(widen(dt) + widen(self.step_bias)), padding_mask)
        log_decay = -torch.exp(widen(self.log_rate)) * dt  # (B, T, H)
        x = widen(x).unflatten(-1, (spec.n_heads, spec.head_dim))  # (B, T, H, P)
        values = (x * dt.unsqueeze(-1)).transpose(1, 2)
        queries, keys = self._by_group(widen(C)), self._by_group(widen(B))
        decays = log_decay.transpose(1, 2).unsqueeze(-1)
        y, memory = self.scan(queries, keys, values, decays, memory)
        y = y.transpose(1, 2) + widen(self.skip).unsqueeze(-1) * x
        return y.flatten(2), memory

    def _by_group(self, shared: Tensor) -> Tensor:
        """B or C (B, T, G N), which the heads of a group share: (B, G, T, N)."""
        return shared.unflatten(-1, (self.spec.n_groups, self.spec.d_state)).transpose(1, 2)

    def _norm(self, y: Tensor, z: Tensor) -> Tensor:
        """Norm of the gated output over each group: section 7.1's normalization."""
        gated = (y * F.silu(widen(z))).unflatten(-1, (self.spec.n_groups, -1))
        scale = torch.rsqrt(gated.square().mean(-1, keepdim=True) + self.spec.norm_eps)
        return (gated * scale).flatten(-2) * widen(self.norm_weight)
