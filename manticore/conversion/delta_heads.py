"""The delta rule behind the source's projections: DeltaNet, and gated DeltaNet.

    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T          y_t = S_t^T q_t

with keys and queries of length one (arXiv:2406.06484, arXiv:2412.06464); a rotation does not change
their length, so they keep the source's rotary positions. The strength b starts at a half. There
is no short convolution and no activation: the source has neither.

    B batch, H heads, T time, K channels of a head
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from manticore.conversion.decayed_heads import (
    DecayedHeadsSpec,
    first_log_decays,
)
from manticore.conversion.heads import constant_linear
from manticore.conversion.recurrent_heads import RecurrentHeads, RecurrentHeadsSpec
from manticore.mixers.delta_scan import delta_scan
from manticore.mixers.precision import widen
from manticore.mixers.time_steps import inverse_softplus
from manticore.mixers.token_shift import zero_padding


@dataclass(frozen=True, kw_only=True)
class DeltaHeadsSpec(RecurrentHeadsSpec):
    """DeltaNet: nothing is forgotten but by being overwritten."""

    def build(self, generator: torch.Generator | None = None) -> DeltaHeads:
        return DeltaHeads(self, generator)

    def num_parameters(self) -> int:
        return super().num_parameters() + self.n_heads * (self.d_model + 1)

    def flops_per_token(self, seq_len: int) -> int:
        # The delta rule also reads what a key holds: two more operations per number.
        extra = 2 * self.state_size(seq_len) + 2 * self.n_heads * self.d_model
        return super().flops_per_token(seq_len) + extra


class DeltaHeads(RecurrentHeads):
    """The token mixer."""

    def __init__(self, spec: RecurrentHeadsSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec, generator)
        self.strength = constant_linear(spec.d_model, spec.n_heads, 0.0)

    def sum_up(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        x: Tensor,
        memory: Tensor | None,
        padding_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        # Queries too: what a key of length one holds is read by a query of length one.
        q, k = (
            h * torch.rsqrt(h.square().sum(-1, keepdim=True) + 1e-6) for h in map(widen, (q, k))
        )
        beta = zero_padding(torch.sigmoid(widen(self.strength(x))), padding_mask)
        log_decay = self.log_decay(x)
        if log_decay is not None:
            log_decay = zero_padding(log_decay, padding_mask).transpose(1, 2)
        return delta_scan(q, k, v, beta.transpose(1, 2), log_decay, memory)

    def log_decay(self, x: Tensor) -> Tensor | None:
        """Logarithm of what each head keeps of its state, (B, T, H); None: all."""
        return None


@dataclass(frozen=True, kw_only=True)
class GatedDeltaHeadsSpec(DecayedHeadsSpec):
    """Gated DeltaNet: a decay for each head and token, as in Mamba-2."""

    def build(self, generator: torch.Generator | None = None) -> GatedDeltaHeads:
        return GatedDeltaHeads(self, generator)

    def num_parameters(self) -> int:
        return super().num_parameters() + 2 * self.n_heads * (self.d_model + 1)

    def flops_per_token(self, seq_len: int) -> int:
        extra = 2 * self.state_size(seq_len) + 4 * self.n_heads * self.d_model
        return super().flops_per_token(seq_len) + extra


class GatedDeltaHeads(DeltaHeads):
    """The token mixer."""

    def __init__(self, spec: GatedDeltaHeadsSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec, generator)
        steps = -first_log_decays(spec)
        self.decay = constant_linear(spec.d_model, spec.n_heads, inverse_softplus(steps))

    def log_decay(self, x: Tensor) -> Tensor:
        return -F.softplus(widen(self.decay(x)))
