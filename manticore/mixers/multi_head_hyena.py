"""Multi-head Hyena: each head convolves the outer products of its keys and values.

    q, k, v = conv(repeat(W_in u))
    S_t = sum_{s <= t} h_{t-s} k_s v_s^T + b k_t v_t^T       one filter h for each head
    y_t = S_t^T q_t;   out = W_out y

(Poli et al., 2024, arXiv:2403.17844; Massaroli et al., 2023, arXiv:2310.18780, section 4.) The sum
can be read as linear attention whose weights also depend on the distance, so short sequences are
computed as (Q K^T * H) V, products of small matrices, and long ones by Fourier transforms of all
key-value pairs. mad-lab swaps the number of heads and their size: `compat="mad-lab"`.

    B batch, T time, S time with the past, H heads, D size of a head
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manticore.mixers.fresh_weights import uniform_linear
from manticore.mixers.hyena import (
    HyenaSpec,
    check_length,
    convolution_flops,
    grown_past,
    with_present,
)
from manticore.mixers.implicit_filter import ImplicitFilter, filter_flops, filter_parameters
from manticore.mixers.interface import Mixer, State
from manticore.mixers.long_convolution import long_convolution
from manticore.mixers.precision import widen
from manticore.mixers.short_conv import ShortConv
from manticore.mixers.token_shift import zero_padding

DIRECT_UP_TO = 224
"""Tokens up to which matrix products are faster than transforms (heads of 8, one CPU thread)."""


@dataclass(frozen=True, kw_only=True)
class MultiHeadHyenaSpec(HyenaSpec):
    """Settings of multi-head Hyena."""

    n_heads: int = 16
    """Heads; `compat="mad-lab"` takes it for the size of a head."""
    groups: int = 4
    """Channels of queries, keys and values that share one channel of the input map."""
    filter_width: int = 2
    """Width of the network that says the filters; the iso-state rule counts states times it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_heads", "groups"):
            if self.d_model % getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)} does not divide d_model={self.d_model}. "
                    "Choose a divisor."
                )

    @property
    def channels(self) -> int:
        """Channels of queries, of keys and of values."""
        return self.d_model

    @property
    def heads(self) -> int:
        """Heads H."""
        return self.d_model // self.n_heads if self.compat == "mad-lab" else self.n_heads

    @property
    def head_size(self) -> int:
        """Size D of a head."""
        return self.d_model // self.heads

    def build(self, generator: torch.Generator | None = None) -> MultiHeadHyena:
        return MultiHeadHyena(self, generator)

    def num_parameters(self) -> int:
        d_model, made = self.d_model, 3 * self.d_model // self.groups
        maps = d_model * made + made + d_model * d_model + d_model
        short = 3 * d_model * (self.conv_size + 1)
        trains = self.compat == "mad-lab"
        filters = filter_parameters(self.heads, self.filter_width, self.max_length, trains)
        return maps + short + self.heads + filters

    def state_size(self, seq_len: int) -> int:
        return self.d_model * (3 * (self.conv_size - 1) + 2 * seq_len)

    def mixing_state_size(self, seq_len: int) -> int:
        return self.heads * self.head_size**2 * self.filter_width

    def flops_per_token(self, seq_len: int) -> int:
        d_model, made = self.d_model, 3 * self.d_model // self.groups
        maps = 2 * (d_model * made + d_model * d_model + 3 * d_model * self.conv_size)
        filters = filter_flops(self.heads, self.filter_width, seq_len)
        if seq_len <= DIRECT_UP_TO:  # both products over all pairs, and the weights
            return maps + filters + seq_len * (4 * d_model + self.heads)
        pairs = d_model * self.head_size
        transforms = convolution_flops(pairs, self.filter_width, seq_len)
        return maps + transforms - filter_flops(pairs - self.heads, 0, seq_len) + 4 * pairs


class MultiHeadHyena(Mixer):
    """The token mixer; state: `before` (batch, taps - 1, 3 d), `past` (batch, time, 2 d)."""

    spec: MultiHeadHyenaSpec

    def __init__(self, spec: MultiHeadHyenaSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec)
        d_model, made = spec.d_model, 3 * spec.d_model // spec.groups
        self.input = uniform_linear(d_model, made, generator, d_model**-0.5)
        self.input_bias = nn.Parameter(torch.zeros(made))
        self.conv = ShortConv(3 * d_model, spec.conv_size, generator)
        self.conv_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.filter = ImplicitFilter(
            spec.heads, spec.filter_width, spec.max_length, spec.compat == "mad-lab", generator
        )
        self.present = nn.Parameter(torch.randn(spec.heads, generator=generator))
        self.output = uniform_linear(d_model, d_model, generator, d_model**-0.5)
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
        q, kv = (wide + self.conv_bias).split([self.spec.d_model, 2 * self.spec.d_model], dim=-1)
        kv = zero_padding(kv, padding_mask)  # the bias has filled the padding again
        seen = kv if past is None else torch.cat([past.to(kv.dtype), kv], dim=1)
        k, v = (self._by_head(t) for t in seen.chunk(2, dim=-1))  # each (B, H, S, D)
        taps = with_present(self.filter(seen.shape[1]), self.present)
        # Direct products cost as much as there are pairs of a query and a position before it.
        is_short = q.shape[1] * seen.shape[1] <= DIRECT_UP_TO**2
        convolve = head_convolution if is_short else head_convolution_fourier
        y = convolve(self._by_head(q), k, v, taps).transpose(1, 2).flatten(2)
        y = self.output(y.to(x.dtype)) + self.output_bias
        if not wants_state:
            return y, None
        assert before is not None
        return y, {"before": before, "past": grown_past(kv, past, padding_mask)}

    def _by_head(self, t: Tensor) -> Tensor:
        return t.unflatten(-1, (self.spec.heads, self.spec.head_size)).transpose(1, 2)


def head_convolution(q: Tensor, k: Tensor, v: Tensor, taps: Tensor) -> Tensor:
    """y_t = sum_{s <= t} h_{t-s} (q_t . k_s) v_s as products of matrices; works under vmap.

    Args:
        q: (batch, heads, seq, size), the last positions of the time that k and v cover.
        k, v: (batch, heads, time, size).
        taps: (heads, time).

    Returns:
        (batch, heads, seq, size), float32 or wider.
    """
    seq_len, time = q.shape[2], k.shape[2]
    now = torch.arange(time - seq_len, time, device=q.device).unsqueeze(1)
    distance = now - torch.arange(time, device=q.device)  # (T, S), negative in the future
    weights = taps[:, distance.clamp(min=0)] * (distance >= 0)  # (H, T, S)
    return (widen(q) @ widen(k).mT * weights) @ widen(v)


def head_convolution_fourier(q: Tensor, k: Tensor, v: Tensor, taps: Tensor) -> Tensor:
    """The same sum by transforms of every key-value pair; arguments as there."""
    heads, size = k.shape[1], k.shape[3]
    pairs = widen(k).unsqueeze(-1) * widen(v).unsqueeze(-2)  # (B, H, S, D, D)
    flat = pairs.transpose(1, 2).flatten(2)  # (B, S, H D D)
    filters = taps.repeat_interleave(size * size, dim=0)
    states = long_convolution(flat, filters, q.shape[2]).unflatten(2, (heads, size, size))
    return (widen(q).unsqueeze(-2) @ states.transpose(1, 2)).squeeze(-2)


def head_convolution_naive(q: Tensor, k: Tensor, v: Tensor, taps: Tensor) -> Tensor:
    """The same sum, one position after the other."""
    offset, outputs = k.shape[2] - q.shape[2], []
    for t in range(q.shape[2]):
        seen = offset + t + 1
        state = torch.einsum(
            "hs,bhsk,bhsv->bhkv",
            taps[:, :seen].flip(1),
            widen(k[:, :, :seen]),
            widen(v[:, :, :seen]),
        )
        outputs.append(torch.einsum("bhk,bhkv->bhv", widen(q[:, :, t]), state))
    return torch.stack(outputs, dim=2)
