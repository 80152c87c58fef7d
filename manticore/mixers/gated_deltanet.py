"""Gated DeltaNet: DeltaNet that can also forget everything at once (arXiv:2412.06464).

    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T
    a_t = exp(-exp(A) softplus(W_a x_t + c))               a decay for each head, as in Mamba-2
    y_t = W_o (RMSNorm(S_t^T q_t / sqrt(K)) silu(W_g x_t))

(Yang, Kautz & Hatamizadeh, 2024.) Qwen3-Next's linear layers are this.

    B batch, T time, H heads
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manticore.mixers.deltanet import DeltaNet, DeltaNetSpec
from manticore.mixers.fresh_weights import xavier_linear
from manticore.mixers.precision import widen
from manticore.mixers.time_steps import first_step_bias

_RATES = (1e-2, 16.0)
"""Where exp(A) starts: with Mamba-2's steps, memories of one to 1e5 tokens."""


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNetSpec(DeltaNetSpec):
    """Settings of gated DeltaNet, at the iso-state rule's sizes.

    The paper's own sizes are expand_key=0.75 and expand_value=1.5: half as many keys as values.
    """

    use_gate: bool = True
    """Whether the output is multiplied by silu of a map of the input."""

    _has_decay: ClassVar[bool] = True

    def build(self, generator: torch.Generator | None = None) -> GatedDeltaNet:
        return GatedDeltaNet(self, generator)

    def num_parameters(self) -> int:
        return super().num_parameters() + 2 * self.n_heads


class GatedDeltaNet(DeltaNet):
    """The token mixer; its state is DeltaNet's."""

    spec: GatedDeltaNetSpec

    def __init__(self, spec: GatedDeltaNetSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec, generator)
        self.decay = xavier_linear(spec.d_model, spec.n_heads, generator)
        rates = torch.empty(spec.n_heads).uniform_(*_RATES, generator=generator)
        self.log_rate = nn.Parameter(rates.log())
        self.step_bias = nn.Parameter(first_step_bias(spec.n_heads, generator))

    def _log_decay(self, x: Tensor) -> Tensor:
        # float32: bfloat16 has no number between 1 and 1 - 1/256, where slow decays live.
        steps = F.softplus(widen(self.decay(x)) + widen(self.step_bias))
        return -torch.exp(widen(self.log_rate)) * steps
