"""Softmax attention, with one head or many, over everything or a sliding window.

    q, k, v = rotated heads of W x + b              y = W_o concat_h(attend(q_h, k_h, v_h)) + b_o

Vaswani et al., 2017 (arXiv:1706.03762), with rotary positions; windows as in Longformer
(arXiv:2004.05150). The attention itself and its naive twin are in `softmax_attention`.

    B batch, T time, D d_model, H heads, G key heads, K key size per head, L keys kept
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manticore.mixers.fresh_weights import uniform_linear
from manticore.mixers.interface import Mixer, MixerSpec, State
from manticore.mixers.positions import count_positions, seen_after
from manticore.mixers.rotary import check_rotary, rotate
from manticore.mixers.softmax_attention import softmax_attention, window_attention


@dataclass(frozen=True, kw_only=True)
class AttentionSpec(MixerSpec):
    """Settings of attention; biases and rotary positions as in the Transformer of mad-lab."""

    n_heads: int = 16
    """Query heads."""
    n_kv_heads: int | None = None
    """Heads of keys and values, a divisor of n_heads; None: as many as n_heads."""
    head_dim: int | None = None
    """Channels of one head; None: d_model / n_heads."""
    window: int | None = None
    """How many positions one sees, itself included; None: all before it."""
    rotary_fraction: float = 1.0
    """Share of each head's channels that are rotated; 0: no positions."""
    rotary_base: float = 10000.0
    """Base of the rotary angles."""
    qkv_bias: bool = True
    """Whether queries, keys and values have a bias."""
    output_bias: bool = True
    """Whether the output has a bias."""

    def __post_init__(self) -> None:
        if self.n_heads < 1 or (self.head_dim is None and self.d_model % self.n_heads):
            raise ValueError(
                f"n_heads={self.n_heads} does not divide d_model={self.d_model}. "
                f"Choose a divisor, or set head_dim."
            )
        if self.head_dim is not None and self.head_dim < 1:
            raise ValueError(f"head_dim={self.head_dim} must be 1 or more.")
        if self.kv_heads < 1 or self.n_heads % self.kv_heads:
            raise ValueError(
                f"n_kv_heads={self.n_kv_heads} does not divide n_heads={self.n_heads}."
                " Choose a divisor, or None for as many."
            )
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window} must be 1 (itself) or more; None for all.")
        check_rotary(self.head_size, self.rotary_fraction, self.rotary_base)

    @property
    def head_size(self) -> int:
        """Channels of one head."""
        return self.d_model // self.n_heads if self.head_dim is None else self.head_dim

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def _widths(self) -> tuple[int, int]:
        """Width of all queries, and of all keys and values."""
        return self.n_heads * self.head_size, 2 * self.kv_heads * self.head_size

    def build(self, generator: torch.Generator | None = None) -> Attention:
        return Attention(self, generator)

    def num_parameters(self) -> int:
        queries, keys_values = self._widths
        weights = self.d_model * (2 * queries + keys_values)
        return weights + self.qkv_bias * (queries + keys_values) + self.output_bias * self.d_model

    def state_size(self, seq_len: int) -> int:
        # The next token brings the last of a window itself.
        kept = seq_len if self.window is None else min(seq_len, self.window - 1)
        return kept * self._widths[1]

    def flops_per_token(self, seq_len: int) -> int:
        queries, keys_values = self._widths
        projections = 2 * self.d_model * (2 * queries + keys_values)
        # A score and a value for each pair, a multiply-add per channel each.
        return projections + 4 * queries * self._pairs(seq_len) // seq_len

    def _pairs(self, seq_len: int) -> int:
        full = seq_len if self.window is None else min(seq_len, self.window)
        return full * (full + 1) // 2 + (seq_len - full) * full


class Attention(Mixer):
    """The token mixer; its state is what it attends to.

    `k`, `v` (batch, key heads, kept, channels), keys already rotated; `seen` (batch), real tokens
    so far; and where padding was ever given, `real` (batch, kept).
    """

    spec: AttentionSpec

    def __init__(self, spec: AttentionSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec)
        queries, keys = spec.n_heads * spec.head_size, spec.kv_heads * spec.head_size
        self.q = _linear(spec.d_model, queries, spec.qkv_bias, generator)
        self.k = _linear(spec.d_model, keys, spec.qkv_bias, generator)
        self.v = _linear(spec.d_model, keys, spec.qkv_bias, generator)
        self.output = _linear(queries, spec.d_model, spec.output_bias, generator)

    def mix(
        self,
        x: Tensor,
        state: State | None,
        padding_mask: Tensor | None,
        positions: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, State | None]:
        spec = self.spec
        q, k, v = (
            linear(x).unflatten(-1, (-1, spec.head_size)).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )  # (B, H or G, T, K)
        seen = None if state is None else state["seen"]
        if positions is None:
            positions = count_positions(x, seen, padding_mask)
        q, k = (
            rotate(heads, positions, spec.rotary_base, spec.rotary_fraction) for heads in (q, k)
        )
        real = _real_keys(state, padding_mask, k)
        if state is not None:
            k, v = (torch.cat([state[name], now], dim=2) for name, now in (("k", k), ("v", v)))
        y = self._attend(q, k, v, real)
        y = self.output(y.transpose(1, 2).flatten(2))
        if not wants_state:
            return y, None
        kept = _last_keys(k, v, real, spec.window)
        return y, {**kept, "seen": seen_after(x, seen, padding_mask)}

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None) -> Tensor:
        """(B, H, T, K) of queries and L keys, of which the last T are their own."""
        seq_len, n_keys, window = q.shape[2], k.shape[2], self.spec.window
        unbounded = window is None or n_keys <= window
        if real is None and unbounded and seq_len in (1, n_keys):
            return softmax_attention(q, k, v, is_causal=seq_len > 1)
        if real is None and window is not None and seq_len > 1:
            return window_attention(q, k, v, window)
        return softmax_attention(q, k, v, _visible(seq_len, n_keys, real, window, q.device))


def _visible(
    seq_len: int, n_keys: int, real: Tensor | None, window: int | None, device: torch.device
) -> Tensor:
    """Which of L keys each of the last T positions sees, (T, L) or (B, 1, T, L)."""
    key = torch.arange(n_keys, device=device)
    query = key[n_keys - seq_len :, None]
    visible = key <= query
    if real is None:
        return visible if window is None else visible & (query - key < window)
    visible = visible & real[:, None, :]
    if window is not None:
        # A window counts real tokens: padding between pieces takes no place in it.
        ordinal = real.cumsum(dim=1)
        distance = ordinal[:, n_keys - seq_len :, None] - ordinal[:, None, :]
        visible = visible & (distance < window)
    # Padding sees itself, since a softmax over nothing is not a number.
    return (visible | (key == query)).unsqueeze(1)


def _real_keys(state: State | None, padding_mask: Tensor | None, k: Tensor) -> Tensor | None:
    """Which of the kept keys and of these are real, (B, L); None: all."""
    before = None if state is None else state.get("real")
    if before is None and padding_mask is None:
        return None
    if padding_mask is None:
        padding_mask = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device)
    if state is None:
        return padding_mask.bool()
    if before is None:
        before = torch.ones(k.shape[0], state["k"].shape[2], dtype=torch.bool, device=k.device)
    return torch.cat([before, padding_mask.bool()], dim=1)


def _last_keys(k: Tensor, v: Tensor, real: Tensor | None, window: int | None) -> State:
    """What the next token may see of these keys; all real ones come last."""
    kept: State = {"k": k, "v": v}
    if real is not None:
        kept["real"] = real
    if window is None:
        return kept
    if real is not None:
        order = real.to(torch.uint8).argsort(dim=1, stable=True)
        index = order[:, None, :, None].expand(-1, *k.shape[1:2], -1, k.shape[3])
        kept = {"k": k.gather(2, index), "v": v.gather(2, index), "real": real.gather(1, order)}
    first = max(0, k.shape[2] - (window - 1))
    # Cloned, because a slice would keep the whole prompt in memory.
    return {
        n: x[:, first:].clone() if n == "real" else x[:, :, first:].clone() for n, x in kept.items()
    }


def _linear(d_in: int, d_out: int, has_bias: bool, generator: torch.Generator | None) -> nn.Linear:
    # torch's own start for weights; biases start at zero, as in mad-lab's language model.
    linear = uniform_linear(d_in, d_out, generator, d_in**-0.5)
    if has_bias:
        linear.bias = nn.Parameter(torch.zeros(d_out))
    return linear
