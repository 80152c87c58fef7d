"""Sums with decay behind the source's projections: retention, gated linear attention, Mamba-2.

    S_t = a_t S_{t-1} + k_t v_t^T            y_t = scale S_t^T q_t

What differs is where a_t comes from: a number for each head (retention, arXiv:2307.08621), a
function of the token for each key channel (GLA, arXiv:2312.06635) or for each head (Mamba-2,
arXiv:2405.21060, with C = q, B = k and x = v as in arXiv:2408.15237). All start alike: decays
that do not depend on the token and whose memories, 1 / (1 - a), are spread over a range.

    B batch, H heads, T time, K channels of a head
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manticore.conversion.heads import constant_linear
from manticore.conversion.recurrent_heads import RecurrentHeads, RecurrentHeadsSpec
from manticore.mixers.decayed_scan import decayed_scan
from manticore.mixers.fresh_weights import uniform_linear
from manticore.mixers.precision import widen
from manticore.mixers.time_steps import inverse_softplus
from manticore.mixers.token_shift import zero_padding


@dataclass(frozen=True, kw_only=True)
class DecayedHeadsSpec(RecurrentHeadsSpec):
    """What the sums with decay share."""

    shortest_memory: float = 4.0
    """Tokens that the first head remembers: 1 / (1 - decay)."""
    longest_memory: float = 256.0
    """Tokens that the last head remembers; those between are spread evenly on a log scale."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 < self.shortest_memory <= self.longest_memory < float("inf"):
            raise ValueError(
                f"shortest_memory={self.shortest_memory}, longest_memory={self.longest_memory}: "
                "give two numbers of tokens above 1, the shorter one first."
            )

    def flops_per_token(self, seq_len: int) -> int:
        return super().flops_per_token(seq_len) + self.state_size(seq_len)


@dataclass(frozen=True, kw_only=True)
class RetentionHeadsSpec(DecayedHeadsSpec):
    """Retention: a fixed decay for each head."""

    def build(self, generator: torch.Generator | None = None) -> RetentionHeads:
        return RetentionHeads(self, generator)


class RetentionHeads(RecurrentHeads):
    """The token mixer."""

    spec: RetentionHeadsSpec

    def sum_up(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        x: Tensor,
        memory: Tensor | None,
        padding_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        per_head = first_log_decays(self.spec, x.device)  # (H)
        log_decay = zero_padding(per_head.expand(*x.shape[:2], -1), padding_mask)
        return decayed_scan(q, k, v, log_decay.transpose(1, 2).unsqueeze(-1), memory)


@dataclass(frozen=True, kw_only=True)
class GLAHeadsSpec(DecayedHeadsSpec):
    """Gated linear attention: a decay for each channel of the key, from the token."""

    gate_rank: int = 16
    """Inner width of the map to the decays."""
    gate_normalizer: float = 16.0
    """The decays' logarithms are divided by it: a larger one changes them more slowly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate_rank < 1 or self.gate_normalizer <= 0:
            raise ValueError(
                f"gate_rank={self.gate_rank} must be 1 or more, and "
                f"gate_normalizer={self.gate_normalizer} greater than 0."
            )

    def build(self, generator: torch.Generator | None = None) -> GLAHeads:
        return GLAHeads(self, generator)

    def num_parameters(self) -> int:
        low_rank = self.gate_rank * (self.d_model + self.query_width)
        return super().num_parameters() + low_rank + self.query_width

    def flops_per_token(self, seq_len: int) -> int:
        low_rank = self.gate_rank * (self.d_model + self.query_width)
        return super().flops_per_token(seq_len) + 2 * low_rank


class GLAHeads(RecurrentHeads):
    """The token mixer."""

    spec: GLAHeadsSpec

    def __init__(self, spec: GLAHeadsSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec, generator)
        self.decay_down = uniform_linear(
            spec.d_model, spec.gate_rank, generator, spec.d_model**-0.5
        )
        # log a = log sigmoid(b) / normalizer, solved for b.
        kept = (spec.gate_normalizer * first_log_decays(spec)).exp()
        start = torch.logit(kept, eps=1e-6).repeat_interleave(spec.head_dim)
        self.decay_up = constant_linear(spec.gate_rank, spec.query_width, start)

    def sum_up(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        x: Tensor,
        memory: Tensor | None,
        padding_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        log_decay = F.logsigmoid(widen(self.decay_up(self.decay_down(x))))
        log_decay = zero_padding(log_decay / self.spec.gate_normalizer, padding_mask)
        return decayed_scan(q, k, v, self._by_head(log_decay), memory)


@dataclass(frozen=True, kw_only=True)
class Mamba2HeadsSpec(DecayedHeadsSpec):
    """Mamba-2's sum: a time step for each head and token scales both the write and the decay."""

    def build(self, generator: torch.Generator | None = None) -> Mamba2Heads:
        return Mamba2Heads(self, generator)

    def num_parameters(self) -> int:
        return super().num_parameters() + self.n_heads * (self.d_model + 3)

    def flops_per_token(self, seq_len: int) -> int:
        return super().flops_per_token(seq_len) + 2 * self.n_heads * self.d_model


class Mamba2Heads(RecurrentHeads):
    """The token mixer.

    It has no short convolution, and the skip past the state starts at 0: attention has neither.
    """

    spec: Mamba2HeadsSpec

    def __init__(self, spec: Mamba2HeadsSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec, generator)
        steps = -first_log_decays(spec)
        self.time_step = constant_linear(spec.d_model, spec.n_heads, inverse_softplus(steps))
        self.log_rate = nn.Parameter(torch.zeros(spec.n_heads))
        self.skip = nn.Parameter(torch.zeros(spec.n_heads))

    def sum_up(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        x: Tensor,
        memory: Tensor | None,
        padding_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        # A step of no length neither forgets nor writes.
        dt = zero_padding(F.softplus(widen(self.time_step(x))), padding_mask)
        dt = dt.transpose(1, 2).unsqueeze(-1)  # (B, H, T, 1)
        log_decay = -widen(self.log_rate).exp()[:, None, None] * dt
        y, memory = decayed_scan(q, k, widen(v) * dt, log_decay, memory)
        return y + widen(self.skip)[:, None, None] * v, memory


def first_log_decays(spec: DecayedHeadsSpec, device: torch.device | None = None) -> Tensor:
    """log(1 - 1 / memory) for each head, memories evenly spaced on a log scale; float32."""
    first, last = math.log(spec.shortest_memory), math.log(spec.longest_memory)
    memories = torch.linspace(first, last, spec.n_heads, device=device).exp()
    return torch.log1p(-1 / memories)
