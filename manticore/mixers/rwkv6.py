"""RWKV-6 ("Finch"): RWKV-5 whose blends and decays depend on the token (arXiv:2404.05892).

    lerp_i(x)  = x_t + (x_{t-1} - x_t) (m_i + B_i tanh(A_i z_t))      z_t blended with m_0
    w_t        = exp(-exp(d + B tanh(A lerp_w(x))))                   a decay for every token
    y_t        = (S_{t-1} + diag(u) k_t v_t^T)^T r_t,     S_t = diag(w_t) S_{t-1} + k_t v_t^T

The output is as in RWKV-5.

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
from manticore.mixers.rwkv5 import first_bonus, first_decay
from manticore.mixers.rwkv_heads import (
    HeadNorm,
    LowRank,
    RWKVTimeSpec,
    position_of_channel,
    split_heads,
)
from manticore.mixers.token_shift import last_real_tokens, token_before, zero_padding

_BLENDS = 5
"""Inputs with a blend of their own: w (the decay), k, v, r, g."""


@dataclass(frozen=True, kw_only=True)
class RWKV6Spec(RWKVTimeSpec):
    """Settings of RWKV-6's time mixer."""

    blend_rank: int = 32
    """Rank of the map that makes each blend depend on the token."""
    decay_rank: int = 64
    """Rank of the map that makes the decay depend on the token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("blend_rank", "decay_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")

    def build(self, generator: torch.Generator | None = None) -> RWKV6:
        return RWKV6(self, generator)

    def num_parameters(self) -> int:
        low_rank = 2 * self.d_model * (_BLENDS * self.blend_rank + self.decay_rank)
        # r, k, v, g, output; then six blends, decay, bonus, the norm's weight and bias.
        return 5 * self.d_model**2 + low_rank + 10 * self.d_model

    def flops_per_token(self, seq_len: int) -> int:
        low_rank = 4 * self.d_model * (_BLENDS * self.blend_rank + self.decay_rank)
        scan = 5 * self.mixing_state_size(seq_len) + 4 * self.d_model
        return 10 * self.d_model**2 + low_rank + scan


class RWKV6(Mixer):
    """The time mixer; state: `last` (batch, 1, d_model), `memory` (batch, H, K, K)."""

    spec: RWKV6Spec

    def __init__(self, spec: RWKV6Spec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec)
        self.scan = choose_bonus_scan(spec.kernel)
        d_model, rank = spec.d_model, spec.blend_rank
        self.receptance = orthogonal_linear(d_model, d_model, generator)
        self.key = orthogonal_linear(d_model, d_model, generator, 0.1)
        self.value = orthogonal_linear(d_model, d_model, generator)
        self.gate = orthogonal_linear(d_model, d_model, generator, 0.1)
        self.output = orthogonal_linear(d_model, d_model, generator, spec.output_gain)
        first, *rest = _first_blends(spec)
        self.blend_of_blends = nn.Parameter(first)
        self.blends = nn.Parameter(torch.stack(rest))
        self.blend_down = orthogonal_linear(d_model, _BLENDS * rank, generator, 0.0)
        self.blend_up = nn.Parameter(torch.empty(_BLENDS, rank, d_model))
        nn.init.uniform_(self.blend_up, -0.01, 0.01, generator=generator)
        self.decay = LowRank(d_model, spec.decay_rank, d_model, generator, first_decay(spec))
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
        x_w, x_k, x_v, x_r, x_g = self._blended(x, token_before(x, last))
        k = zero_padding(self.key(x_k), padding_mask)
        log_decay = -torch.exp(widen(self.decay(x_w, "tanh")))
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

    def _blended(self, x: Tensor, earlier: Tensor) -> tuple[Tensor, ...]:
        """The token and the one before it, blended anew for each input."""
        change = earlier - x
        inner = torch.tanh(self.blend_down(torch.addcmul(x, change, self.blend_of_blends)))
        inner = inner.unflatten(-1, (_BLENDS, -1)).movedim(2, 0)  # (5, B, T, rank)
        moved = inner @ self.blend_up.unsqueeze(1)  # (5, B, T, D)
        blends = self.blends[:, None, None] + moved
        return torch.addcmul(x, change, blends).unbind(0)


def _first_blends(spec: RWKV6Spec) -> list[Tensor]:
    """The share of the earlier token: for the blends themselves, then for w, k, v, r, g."""
    place = position_of_channel(spec.d_model)
    most, half = 1 - place**spec.height, 1 - place ** (0.5 * spec.height)
    return [most, most, most, most - 0.3 * spec.depth, half, half]
