"""RWKV-7 ("Goose"): a generalised delta rule with a decay for every channel (arXiv:2503.14456).

    w_t = exp(-exp(-1/2) sigmoid(lora_w(x)))           a decay between 0.545 and 1
    a_t = sigmoid(lora_a(x))                           the share of the held value to replace
    n_t = k_t k_k / |k_t k_k|,   k'_t = k_t (1 + (a_t - 1) k_a)
    S_t = diag(w_t) S_{t-1} - (n_t a_t) (n_t^T S_{t-1}) + k'_t v_t^T
    out = W_o ((norm(S_t^T r_t) + (r_t . (k'_t r_k)) v_t) lora_g(x))

with the state (key, value), the transpose of the paper's, and every input blended with the token
before. In a whole model, layers after the first also blend their values with the first layer's:
that is `value_residual=True` and `forward_with_value`, as a mixer sees one layer only.

    B batch, H heads, T time, K channels of a head
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manticore.mixers.delta_scan_choice import choose_dplr_scan
from manticore.mixers.fresh_weights import orthogonal_linear, uniform_linear
from manticore.mixers.interface import Mixer, State
from manticore.mixers.precision import widen
from manticore.mixers.rwkv_heads import (
    HeadNorm,
    LowRank,
    RWKVTimeSpec,
    even_steps,
    position_of_channel,
    split_heads,
)
from manticore.mixers.token_shift import last_real_tokens, token_before, zero_padding

_FASTEST_DECAY = -math.exp(-0.5)


@dataclass(frozen=True, kw_only=True)
class RWKV7Spec(RWKVTimeSpec):
    """Settings of RWKV-7's time mixer."""

    decay_rank: int = 32
    """Rank of the map from the token to its decay."""
    replace_rank: int = 32
    """Rank of the map from the token to the share of the old value that is replaced."""
    value_rank: int = 32
    """Rank of the map from the token to its share of the first layer's value."""
    gate_rank: int = 64
    """Rank of the map from the token to the output's gate."""
    value_residual: bool = False
    """Whether values are blended with the first layer's; then call `forward_with_value`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("decay_rank", "replace_rank", "value_rank", "gate_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")

    @property
    def _ranks(self) -> int:
        ranks = self.decay_rank + self.replace_rank + self.gate_rank
        return ranks + self.value_rank * self.value_residual

    def build(self, generator: torch.Generator | None = None) -> RWKV7:
        return RWKV7(self, generator)

    def num_parameters(self) -> int:
        # r, k, v, output, low ranks; six blends, two or three biases, k_k, k_a, r_k, the norm's 2.
        vectors = 13 + self.value_residual
        return self.d_model * (4 * self.d_model + 2 * self._ranks + vectors)

    def flops_per_token(self, seq_len: int) -> int:
        projections = self.d_model * (8 * self.d_model + 4 * self._ranks)
        # Decay is a product; read by the removal key, write twice, read: a multiply-add each.
        return projections + 9 * self.mixing_state_size(seq_len)


class RWKV7(Mixer):
    """The time mixer; state: `last` (batch, 1, d_model), `memory` (batch, H, K, K)."""

    spec: RWKV7Spec

    def __init__(self, spec: RWKV7Spec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec)
        self.scan = choose_dplr_scan(spec.kernel)
        d_model, bound = spec.d_model, 0.5 * spec.d_model**-0.5
        self.receptance = uniform_linear(d_model, d_model, generator, bound)
        self.key = uniform_linear(d_model, d_model, generator, 0.1 * bound)
        self.value = uniform_linear(d_model, d_model, generator, bound)
        self.output = orthogonal_linear(d_model, d_model, generator, spec.output_gain)
        self.blend = nn.Parameter(_first_blends(spec))
        decay, replace, value = _first_biases(spec)
        self.decay = LowRank(d_model, spec.decay_rank, d_model, generator, decay)
        self.replace = LowRank(d_model, spec.replace_rank, d_model, generator, replace)
        self.gate = LowRank(d_model, spec.gate_rank, d_model, generator)
        self.value_share = (
            LowRank(d_model, spec.value_rank, d_model, generator, value)
            if spec.value_residual
            else None
        )
        self.removal_scale = nn.Parameter(0.71 - 0.1 * (even_steps(d_model) - 0.5))  # k_k
        self.replace_scale = nn.Parameter(torch.full((d_model,), 1.02))  # k_a
        self.bonus = nn.Parameter(torch.full((d_model,), -0.04))  # r_k
        self.norm = HeadNorm(spec, ((spec.layer_index + 1) / spec.n_layers) ** 0.7)

    def mix(
        self,
        x: Tensor,
        state: State | None,
        padding_mask: Tensor | None,
        positions: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, State | None]:
        y, _, state = self._mix(x, None, state, padding_mask, wants_state)
        return y, state

    def forward_with_value(
        self, x: Tensor, first_value: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`forward` for a layer of a whole RWKV-7.

        Args:
            x, padding_mask: as in `forward`.
            first_value: (batch, seq, d_model), the value that the first layer returned; needed
                if and only if the specification says `value_residual`.

        Returns:
            y as from `forward`, and this layer's own value, (batch, seq, d_model).
        """
        y, value, _ = self._mix(x, first_value, None, padding_mask, False)
        return y, value

    def prefill_with_value(
        self,
        x: Tensor,
        first_value: Tensor | None = None,
        state: State | None = None,
        padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, State]:
        """`prefill` for a layer of a whole RWKV-7: y, this layer's value, the state."""
        y, value, state = self._mix(x, first_value, state, padding_mask, True)
        assert state is not None
        return y, value, state

    def _mix(
        self,
        x: Tensor,
        first_value: Tensor | None,
        state: State | None,
        padding_mask: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, Tensor, State | None]:
        size = self.spec.head_size
        x = zero_padding(x, padding_mask)
        last = None if state is None else state["last"]
        change = token_before(x, last) - x
        x_r, x_w, x_k, x_v, x_a, x_g = (torch.addcmul(x, change, m) for m in self.blend.unbind(0))
        own_value = self.value(x_v)
        v = split_heads(self._blend_values(own_value, first_value, x_v), size)
        log_decay = _FASTEST_DECAY * torch.sigmoid(widen(self.decay(x_w, "tanh")))
        r, k = split_heads(self.receptance(x_r), size), self.key(x_k)
        share = torch.sigmoid(widen(self.replace(x_a)))  # a_t
        removal = split_heads(widen(k) * widen(self.removal_scale), size)
        removal = F.normalize(removal, dim=-1)  # n_t
        k = split_heads(widen(k) * (1 + (share - 1) * widen(self.replace_scale)), size)

        def real(by_head: Tensor) -> Tensor:
            if padding_mask is None:
                return by_head
            return by_head * padding_mask[:, None, :, None]

        y, memory = self.scan(
            r,
            real(k),
            v,
            -removal,
            real(removal * split_heads(share, size)),
            real(split_heads(log_decay, size)),
            None if state is None else state["memory"],
            fastest_decay=_FASTEST_DECAY,
        )
        bonus = (r * k * widen(self.bonus).unflatten(0, (-1, 1, size))).sum(-1, keepdim=True) * v
        y = self.norm(y) + bonus.transpose(1, 2).flatten(2)
        y = self.output((y * self.gate(x_g, "sigmoid")).to(x.dtype))
        if not wants_state:
            return y, own_value, None
        last = last_real_tokens(x, last, 1, padding_mask)
        return y, own_value, {"last": last, "memory": memory}

    def _blend_values(self, own: Tensor, first: Tensor | None, x_v: Tensor) -> Tensor:
        if (first is None) == self.spec.value_residual:
            raise ValueError(
                f"This RWKV-7 layer has value_residual={self.spec.value_residual} and "
                f"first_value is {'missing' if first is None else 'given'}. With a value residual "
                "call forward_with_value or prefill_with_value with the first layer's value; "
                "without one give none."
            )
        if first is None or self.value_share is None:
            return own
        return torch.lerp(own, first.to(own.dtype), torch.sigmoid(self.value_share(x_v)))


def _first_blends(spec: RWKV7Spec) -> Tensor:
    """The share of the earlier token for r, w, k, v, a, g: (6, d_model), less in later layers."""
    place = position_of_channel(spec.d_model)
    powers = (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)
    return torch.stack([1 - place ** (power * spec.height) for power in powers])


def _first_biases(spec: RWKV7Spec) -> tuple[Tensor, Tensor, Tensor]:
    """Where decay, replacement and value residual start, before their sigmoids."""
    even = even_steps(spec.d_model)
    zigzag = 2 * even_steps(spec.head_size) - 1
    zigzag = (zigzag * zigzag.abs()).repeat(spec.n_heads)
    decay = -6 + 6 * even ** (1 + spec.depth**0.3) + 0.5 + 2.5 * zigzag
    replace = -0.19 + 0.3 * zigzag + 0.4 * (even - 0.5)
    return decay, replace, 0.73 - 0.4 * (even - 0.5)
