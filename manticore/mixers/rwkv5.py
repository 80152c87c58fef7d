"""RWKV-5.2 ("Eagle"): a decay and a bonus for every channel of the key (arXiv:2404.05892).

x'_t = m x_t + (1 - m) x_{t-1}            a blend m for each of r, k, v, g (token shift)
y_t  = (S_{t-1} + diag(u) k_t v_t^T)^T r_t,     S_t = diag(w) S_{t-1} + k_t v_t^T
w    = exp(-exp(d)),  out = W_o (norm(y) silu(W_g x'))

B batch, H heads, T time, K channels of a head
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manticore.mixers.delta_scan_choice import choose_bonus_scan
from manticore.mixers.fresh_weights import orthogonal_linear
from manticore.mixers.interface import Mixer, State
from manticore.mixers.precision import widen
from manticore.mixers.rwkv_heads import (
    HeadNorm,
    RWKVTimeSpec,
    even_steps,
    position_of_channel,
    split_heads,
)
from manticore.mixers.token_shift import last_real_tokens, token_before, zero_padding


@dataclass(frozen=True, kw_only=True)
class RWKV5Spec(RWKVTimeSpec):
    """Settings of RWKV-5.2's time mixer."""

    def build(self, generator: torch.Generator | None = None) -> RWKV5:
        return RWKV5(self, generator)

    def num_parameters(self) -> int:
        # r, k, v, g, output; then four blends, decay, bonus, the norm's weight and bias.
        return 5 * self.d_model**2 + 8 * self.d_model

    def flops_per_token(self, seq_len: int) -> int:
        # The decay is a product; write, and read: a multiply-add each. Then the own token.
        scan = 5 * self.mixing_state_size(seq_len) + 4 * self.d_model
        return 10 * self.d_model**2 + scan


class RWKV5(Mixer):
    """The time mixer; state: `last` (batch, 1, d_model), `memory` (batch, H, K, K)."""

    spec: RWKV5Spec

    def __init__(self, spec: RWKV5Spec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec)
        self.scan = choose_bonus_scan(spec.kernel)
        d_model = spec.d_model
        self.receptance = orthogonal_linear(d_model, d_model, generator)
        self.key = orthogonal_linear(d_model, d_model, generator, 0.1)
        self.value = orthogonal_linear(d_model, d_model, generator)
        self.gate = orthogonal_linear(d_model, d_model, generator, 0.1)
        self.output = orthogonal_linear(d_model, d_model, generator, spec.output_gain)
        self.blend = nn.Parameter(first_blends(spec))
        self.decay = nn.Parameter(first_decay(spec))
        self.bonus = nn.Parameter(first_bonus(spec))
        self.norm = HeadNorm(spec)

    def mix(
        self,
        x: Tensor,
        state: State | None,
        padding_mask: Tensor | None,
        positions: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, State | None]:
        size = self.spec.head_size
        x = zero_padding(x, padding_mask)
        last = None if state is None else state["last"]
        earlier = token_before(x, last)
        x_r, x_k, x_v, x_g = (torch.lerp(earlier, x, m) for m in self.blend.unbind(0))
        k = zero_padding(self.key(x_k), padding_mask)
        log_decay = -torch.exp(widen(self.decay)).expand(*x.shape[:2], -1)
        y, memory = self.scan(
            split_heads(self.receptance(x_r), size),
            split_heads(k, size),
            split_heads(self.value(x_v), size),
            split_heads(zero_padding(log_decay, padding_mask), size),
            None if state is None else state["memory"],
            bonus=self.bonus.unflatten(0, (-1, size)),
        )
        y = self.output((self.norm(y) * F.silu(self.gate(x_g))).to(x.dtype))
        if not wants_state:
            return y, None
        return y, {"last": last_real_tokens(x, last, 1, padding_mask), "memory": memory}


def first_blends(spec: RWKVTimeSpec) -> Tensor:
    """The share of the present token for r, k, v, g: (4, d_model), larger in later layers."""
    place = position_of_channel(spec.d_model)
    k = place**spec.height
    r = place ** (0.5 * spec.height)
    return torch.stack([r, k, k + 0.3 * spec.depth, r])


def first_decay(spec: RWKVTimeSpec) -> Tensor:
    """log(-log w) from -6 (400 tokens) at the first channel to -1 (3 tokens) at the last."""
    return -6 + 5 * even_steps(spec.d_model) ** (0.7 + 1.3 * spec.depth)


def first_bonus(spec: RWKVTimeSpec) -> Tensor:
    """The own token's weight, larger in later layers, with a small zigzag over channels."""
    zigzag = 0.1 * ((torch.arange(spec.d_model) + 1) % 3 - 1)
    return spec.depth * (1 - even_steps(spec.d_model)) + zigzag
