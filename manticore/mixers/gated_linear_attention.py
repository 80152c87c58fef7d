"""Gated linear attention: each channel of the key forgets at its own, learned rate (GLA).

    S_t = diag(a_t) S_{t-1} + k_t v_t^T          a_t = sigmoid(W_2 W_1 x_t + b)^(1/16)
    y_t = W_o (RMSNorm(S_t^T q_t / sqrt(K)) silu(W_g x_t))

for each head (Yang et al., 2023, arXiv:2312.06635, equations 3 and 4 and section 4.4). The scan
and its naive twin are in `decayed_scan`.

    B batch, T time, H heads, K key size per head, V value size per head
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manticore.mixers.fresh_weights import xavier_linear
from manticore.mixers.head_norm import HeadNorm
from manticore.mixers.head_widths import check_heads
from manticore.mixers.interface import Mixer, MixerSpec, State
from manticore.mixers.precision import widen
from manticore.mixers.scan_choice import Kernel, check_kernel, choose_scan
from manticore.mixers.token_shift import zero_padding


@dataclass(frozen=True, kw_only=True)
class GatedLinearAttentionSpec(MixerSpec):
    """Settings of gated linear attention, at the sizes that mad-lab gives it."""

    n_heads: int = 8
    """Heads; each has a state of key size times value size."""
    expand_key: float = 1.0
    """Width of all keys together, as a multiple of d_model; the paper's own is 0.5."""
    expand_value: float = 1.0
    """Width of all values together, as a multiple of d_model."""
    gate_rank: int = 16
    """Inner width of the map to the decays."""
    gate_normalizer: float = 16.0
    """The decays' logarithms are divided by it: a larger one remembers longer."""
    use_gate: bool = True
    """Whether the output is multiplied by silu of a map of the input."""
    norm_eps: float = 1e-5
    """Added to the mean square in the output's norm."""
    kernel: Kernel = "torch"
    """What runs the scan: torch, or fla (flash-linear-attention, on a GPU)."""

    def __post_init__(self) -> None:
        factors = {"expand_key": self.expand_key, "expand_value": self.expand_value}
        check_heads(self.d_model, self.n_heads, **factors)
        if self.gate_rank < 1 or self.gate_normalizer <= 0:
            raise ValueError(
                f"gate_rank={self.gate_rank} must be 1 or more, and "
                f"gate_normalizer={self.gate_normalizer} greater than 0."
            )
        check_kernel(self.kernel)

    @property
    def key_width(self) -> int:
        """Width of all heads' keys together."""
        return round(self.d_model * self.expand_key)

    @property
    def value_width(self) -> int:
        """Width of all heads' values together."""
        return round(self.d_model * self.expand_value)

    @property
    def _weights(self) -> int:
        """Numbers in all matrices."""
        wide = 2 * self.key_width + (2 + self.use_gate) * self.value_width
        return self.d_model * wide + self.gate_rank * (self.d_model + self.key_width)

    def build(self, generator: torch.Generator | None = None) -> GatedLinearAttention:
        return GatedLinearAttention(self, generator)

    def num_parameters(self) -> int:
        return self._weights + self.key_width + self.value_width // self.n_heads

    def state_size(self, seq_len: int) -> int:
        return self.key_width * self.value_width // self.n_heads

    def flops_per_token(self, seq_len: int) -> int:
        # Decay, write and read: one, two and two operations per number of the state.
        return 2 * self._weights + 5 * self.state_size(seq_len)


class GatedLinearAttention(Mixer):
    """The token mixer; its state is `memory` (batch, H, K, V), float32."""

    spec: GatedLinearAttentionSpec

    def __init__(
        self, spec: GatedLinearAttentionSpec, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(spec)
        d_model = spec.d_model
        self.q = xavier_linear(d_model, spec.key_width, generator)
        self.k = xavier_linear(d_model, spec.key_width, generator)
        self.v = xavier_linear(d_model, spec.value_width, generator)
        self.gate = xavier_linear(d_model, spec.value_width, generator) if spec.use_gate else None
        self.decay_down = xavier_linear(d_model, spec.gate_rank, generator)
        self.decay_up = xavier_linear(spec.gate_rank, spec.key_width, generator)
        self.decay_up.bias = nn.Parameter(torch.zeros(spec.key_width))
        self.norm = HeadNorm("rms", spec.value_width // spec.n_heads, spec.norm_eps)
        self.output = xavier_linear(spec.value_width, d_model, generator)
        self.scan = choose_scan(spec.kernel)

    def mix(
        self,
        x: Tensor,
        state: State | None,
        padding_mask: Tensor | None,
        positions: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, State | None]:
        x = zero_padding(x, padding_mask)
        # float32: bfloat16 has no number between 1 and 1 - 1/256, where slow decays live.
        log_decay = F.logsigmoid(widen(self.decay_up(self.decay_down(x))))
        log_decay = zero_padding(log_decay / self.spec.gate_normalizer, padding_mask)
        q, k, v, log_decay = (
            heads.unflatten(-1, (self.spec.n_heads, -1)).transpose(1, 2)
            for heads in (self.q(x), self.k(x), self.v(x), log_decay)
        )  # (B, H, T, K or V)
        memory = None if state is None else state["memory"]
        y, memory = self.scan(q * q.shape[-1] ** -0.5, k, v, log_decay, memory)
        y = self.norm(y, None if self.gate is None else self.gate(x))
        return self.output(y), {"memory": memory} if wants_state else None
