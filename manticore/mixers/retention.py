"""Retention: linear attention that forgets at a fixed rate, another one in each head (RetNet).

    S_t = a_h S_{t-1} + k_t v_t^T           a_h = 1 - 2^(-5-h),  h = 0, 1, ...
    y_t = W_o (GroupNorm(S_t^T q_t / sqrt(K)) silu(W_g x_t))

with rotated queries and keys (Sun et al., 2023, arXiv:2307.08621, equations 5 to 8). The scan and
its naive twin are in `decayed_scan`.

    B batch, T time, H heads, K key size per head, V value size per head
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from manticore.mixers.fresh_weights import xavier_linear
from manticore.mixers.head_norm import HeadNorm, NormKind, check_norm, num_norm_parameters
from manticore.mixers.head_widths import check_heads
from manticore.mixers.interface import Mixer, MixerSpec, State
from manticore.mixers.positions import count_positions, seen_after
from manticore.mixers.rotary import check_rotary, rotate
from manticore.mixers.scan_choice import Kernel, check_kernel, choose_scan
from manticore.mixers.token_shift import zero_padding


@dataclass(frozen=True, kw_only=True)
class RetentionSpec(MixerSpec):
    """Settings of retention, at the iso-state rule's sizes."""

    n_heads: int = 8
    """Heads; the first forgets half in 22 tokens, each next one half as fast."""
    expand_value: float = 1.0
    """Width of all values together, as a multiple of d_model; the paper's own is 2."""
    rotary_fraction: float = 1.0
    """Share of each head's query and key channels that are rotated; 0: none."""
    rotary_base: float = 10000.0
    """Base of the rotary angles."""
    use_gate: bool = True
    """Whether the output is multiplied by silu of a map of the input."""
    output_norm: NormKind = "group"
    """Norm of each head: group (the paper's), rms (with weights), or none."""
    norm_eps: float = 1e-5
    """Added to the mean square in the output's norm."""
    kernel: Kernel = "torch"
    """What runs the scan: torch, or fla (flash-linear-attention, on a GPU)."""

    def __post_init__(self) -> None:
        if self.n_heads < 1 or self.d_model < 1 or self.d_model % self.n_heads:
            raise ValueError(
                f"n_heads={self.n_heads} does not divide d_model={self.d_model}. Choose a divisor."
            )
        check_heads(self.d_model, self.n_heads, expand_value=self.expand_value)
        check_rotary(self.d_model // self.n_heads, self.rotary_fraction, self.rotary_base)
        check_norm(self.output_norm, self.norm_eps)
        check_kernel(self.kernel)

    @property
    def value_width(self) -> int:
        """Width of all heads' values together."""
        return round(self.d_model * self.expand_value)

    @property
    def _weights(self) -> int:
        """Numbers in all matrices."""
        return self.d_model * (2 * self.d_model + (2 + self.use_gate) * self.value_width)

    def build(self, generator: torch.Generator | None = None) -> Retention:
        return Retention(self, generator)

    def num_parameters(self) -> int:
        return self._weights + num_norm_parameters(
            self.output_norm, self.value_width // self.n_heads
        )

    def state_size(self, seq_len: int) -> int:
        return self.d_model * self.value_width // self.n_heads

    def flops_per_token(self, seq_len: int) -> int:
        # Decay, write and read: one, two and two operations per number of the state.
        return 2 * self._weights + 5 * self.state_size(seq_len)


class Retention(Mixer):
    """The token mixer; its state: `memory` (batch, H, K, V), float32, and `seen` (batch)."""

    spec: RetentionSpec

    def __init__(self, spec: RetentionSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec)
        d_model, width = spec.d_model, spec.value_width
        self.q = xavier_linear(d_model, d_model, generator)
        self.k = xavier_linear(d_model, d_model, generator)
        self.v = xavier_linear(d_model, width, generator)
        self.gate = xavier_linear(d_model, width, generator) if spec.use_gate else None
        self.norm = HeadNorm(spec.output_norm, width // spec.n_heads, spec.norm_eps)
        self.output = xavier_linear(width, d_model, generator)
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
        x = zero_padding(x, padding_mask)
        seen = None if state is None else state["seen"]
        if positions is None:
            positions = count_positions(x, seen, padding_mask)
        q, k, v = (
            heads.unflatten(-1, (spec.n_heads, -1)).transpose(1, 2)
            for heads in (self.q(x), self.k(x), self.v(x))
        )  # (B, H, T, K or V)
        q, k = (
            rotate(heads, positions, spec.rotary_base, spec.rotary_fraction) for heads in (q, k)
        )
        memory = None if state is None else state["memory"]
        log_decay = self._log_decay(x, padding_mask)
        y, memory = self.scan(q * q.shape[-1] ** -0.5, k, v, log_decay, memory)
        y = self.output(self.norm(y, None if self.gate is None else self.gate(x)))
        if not wants_state:
            return y, None
        return y, {"memory": memory, "seen": seen_after(x, seen, padding_mask)}

    def _log_decay(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """log a_h at real tokens, 0 at padding; (B, H, T, 1)."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        log_decay = log_decays(self.spec.n_heads, dtype, x.device)
        by_time = log_decay.expand(*x.shape[:2], -1)  # (B, T, H)
        return zero_padding(by_time, padding_mask).transpose(1, 2).unsqueeze(-1)


def log_decays(n_heads: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Logarithm of what each head keeps per token, (heads); equation 8."""
    head = torch.arange(n_heads, device=device, dtype=dtype)
    return torch.log1p(-torch.exp2(-5 - head))
