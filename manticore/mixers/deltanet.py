"""DeltaNet: linear attention that overwrites instead of adding up (arXiv:2406.06484).

    q, k = norm(f(conv(W_q x))), norm(f(conv(W_k x)))     v = f(conv(W_v x))     b = sigmoid(W_b x)
    S_t = (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T     y_t = W_o RMSNorm(S_t^T q_t / sqrt(K))

for each head (Yang et al., 2024). The scan and its naive twin are in `delta_scan`.

    B batch, T time, D d_model, H heads, K key size per head, V value size per head
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manticore.mixers.delta_scan_choice import choose_delta_scan
from manticore.mixers.fresh_weights import xavier_linear
from manticore.mixers.head_widths import check_heads
from manticore.mixers.interface import Mixer, MixerSpec, State
from manticore.mixers.precision import widen
from manticore.mixers.scan_choice import Kernel, check_kernel
from manticore.mixers.short_conv import ShortConv
from manticore.mixers.token_shift import zero_padding

Activation = Literal["silu", "relu", "elu", "identity"]
_ACTIVATIONS = {
    "silu": F.silu,
    "relu": F.relu,
    "elu": lambda x: F.elu(x) + 1,
    "identity": lambda x: x,
}


@dataclass(frozen=True, kw_only=True)
class DeltaNetSpec(MixerSpec):
    """Settings of DeltaNet; the defaults are the paper's, at the iso-state rule's sizes."""

    n_heads: int = 8
    """Heads; each has a state of key size times value size."""
    expand_key: float = 1.0
    """Width of all keys together, as a multiple of d_model."""
    expand_value: float = 1.0
    """Width of all values together, as a multiple of d_model."""
    conv_size: int = 4
    """Taps of the short convolution on queries, keys and values; 0: none."""
    qk_activation: Activation = "silu"
    """What queries and keys pass before their norm."""
    qk_norm: Literal["l2", "sum"] = "l2"
    """Queries and keys are divided by their length (l2) or by the sum of their sizes (sum)."""
    use_beta: bool = True
    """Whether the strength of a write is learned; False: always full."""
    allow_neg_eigval: bool = False
    """Double the strength: eigenvalues down to -1 track parity (arXiv:2411.12537)."""
    use_gate: bool = False
    """Whether the output is multiplied by silu of a map of the input."""
    norm_eps: float = 1e-5
    """Added to the mean square in the output's norm."""
    kernel: Kernel = "torch"
    """What runs the scan: torch, or fla (flash-linear-attention, on a GPU)."""

    _has_decay: ClassVar[bool] = False

    def __post_init__(self) -> None:
        factors = {"expand_key": self.expand_key, "expand_value": self.expand_value}
        check_heads(self.d_model, self.n_heads, **factors)
        if self.conv_size < 0:
            raise ValueError(f"conv_size={self.conv_size} must be 0 (none) or more.")
        if self.qk_activation not in _ACTIVATIONS:
            raise ValueError(
                f"qk_activation={self.qk_activation!r} must be one of {', '.join(_ACTIVATIONS)}."
            )
        if self.qk_norm not in ("l2", "sum"):
            raise ValueError(f"qk_norm={self.qk_norm!r} must be 'l2' or 'sum'.")
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
    def _conv_channels(self) -> int:
        return 2 * self.key_width + self.value_width

    @property
    def _projected(self) -> int:
        """Numbers per token that come out of maps of the input."""
        scalars = self.n_heads * (self.use_beta + self._has_decay)
        return self._conv_channels + scalars + self.value_width * self.use_gate

    def build(self, generator: torch.Generator | None = None) -> DeltaNet:
        return DeltaNet(self, generator)

    def num_parameters(self) -> int:
        projections = self.d_model * (self._projected + self.value_width)
        norm = self.value_width // self.n_heads
        return projections + self.conv_size * self._conv_channels + norm

    def mixing_state_size(self, seq_len: int) -> int:
        return self.key_width * self.value_width // self.n_heads

    def state_size(self, seq_len: int) -> int:
        return self.mixing_state_size(seq_len) + max(0, self.conv_size - 1) * self._conv_channels

    def flops_per_token(self, seq_len: int) -> int:
        projections = 2 * self.d_model * (self._projected + self.value_width)
        # Read what the key holds, write, read the query: a multiply-add each; and the decay.
        scan = (6 + self._has_decay) * self.mixing_state_size(seq_len)
        return projections + 2 * self.conv_size * self._conv_channels + scan


class DeltaNet(Mixer):
    """The token mixer; state: `conv` (batch, taps - 1, channels), `memory` (batch, H, K, V)."""

    spec: DeltaNetSpec

    def __init__(self, spec: DeltaNetSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec)
        d_model, n_heads = spec.d_model, spec.n_heads
        self.scan = choose_delta_scan(spec.kernel)
        self.q = xavier_linear(d_model, spec.key_width, generator)
        self.k = xavier_linear(d_model, spec.key_width, generator)
        self.v = xavier_linear(d_model, spec.value_width, generator)
        self.beta = xavier_linear(d_model, n_heads, generator) if spec.use_beta else None
        self.gate = xavier_linear(d_model, spec.value_width, generator) if spec.use_gate else None
        channels = 2 * spec.key_width + spec.value_width
        self.conv = ShortConv(channels, spec.conv_size, generator) if spec.conv_size else None
        self.norm_weight = nn.Parameter(torch.ones(spec.value_width // n_heads))
        self.output = xavier_linear(spec.value_width, d_model, generator)

    def mix(
        self,
        x: Tensor,
        state: State | None,
        padding_mask: Tensor | None,
        positions: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, State | None]:
        x = zero_padding(x, padding_mask)
        before = None if state is None else state.get("conv")
        q, k, v, tail = self._queries_keys_values(x, before, padding_mask, wants_state)
        beta = zero_padding(self._strength(x), padding_mask).transpose(1, 2)  # (B, H, T)
        log_decay = self._log_decay(x)
        if log_decay is not None:
            log_decay = zero_padding(log_decay, padding_mask).transpose(1, 2)
        memory = None if state is None else state["memory"]
        y, memory = self.scan(q, k, v, beta, log_decay, memory)
        y = self.output(self._norm_and_gate(y.transpose(1, 2), x))
        if not wants_state:
            return y, None
        return y, {"memory": memory} if tail is None else {"memory": memory, "conv": tail}

    def _queries_keys_values(
        self, x: Tensor, before: Tensor | None, padding_mask: Tensor | None, wants_state: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        spec, tail = self.spec, None
        qkv = torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)
        if self.conv is not None:
            qkv, tail = self.conv(qkv, before, padding_mask, wants_state)
        qk, v = qkv.split([2 * spec.key_width, spec.value_width], dim=-1)
        heads = widen(qk).unflatten(-1, (2, spec.n_heads, -1))  # (B, T, 2, H, K)
        heads = _ACTIVATIONS[spec.qk_activation](heads)
        if spec.qk_norm == "sum":
            heads = heads / heads.abs().sum(-1, keepdim=True).clamp(min=1e-6)
        else:
            heads = heads * torch.rsqrt(heads.square().sum(-1, keepdim=True) + 1e-6)
        q, k = heads.permute(2, 0, 3, 1, 4)  # each (B, H, T, K)
        v = F.silu(v).unflatten(-1, (spec.n_heads, -1)).transpose(1, 2)
        return q * q.shape[-1] ** -0.5, k, v, tail

    def _strength(self, x: Tensor) -> Tensor:
        """How strongly each head writes, (B, T, H)."""
        if self.beta is None:
            beta = x.new_ones(*x.shape[:2], self.spec.n_heads)
        else:
            beta = torch.sigmoid(widen(self.beta(x)))
        return 2 * beta if self.spec.allow_neg_eigval else beta

    def _log_decay(self, x: Tensor) -> Tensor | None:
        """Logarithm of what each head keeps of its state, (B, T, H); None: all."""
        return None

    def _norm_and_gate(self, y: Tensor, x: Tensor) -> Tensor:
        """RMS norm of each head, (B, T, H, V) to (B, T, H V), times the gate."""
        wide = widen(y)
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.spec.norm_eps)
        wide = (wide * self.norm_weight).flatten(2)
        if self.gate is not None:
            wide = wide * F.silu(widen(self.gate(x)))
        return wide.to(y.dtype)
