"""Linear attention: a sum of keys and values in place of a cache (arXiv:2006.16236).

    S_t = S_{t-1} + phi(k_t) v_t^T                 z_t = z_{t-1} + phi(k_t)
    y_t = W_o (S_t^T phi(q_t) / z_t phi(q_t))

for each head (Katharopoulos et al., 2020, equations 9 to 12). phi is one of `feature_maps`. The
scan and its naive twin are in `decayed_scan`; z rides along as one more channel of the values.

    B batch, T time, H heads, K key size per head, F features per head
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from manticore.mixers.feature_maps import (
    MAPS,
    FeatureMap,
    MapName,
    map_flops,
    num_features,
    num_map_parameters,
)
from manticore.mixers.fresh_weights import uniform_linear
from manticore.mixers.head_norm import HeadNorm, check_norm
from manticore.mixers.interface import Mixer, MixerSpec, State
from manticore.mixers.precision import widen
from manticore.mixers.scan_choice import Kernel, check_kernel, choose_scan
from manticore.mixers.token_shift import zero_padding

_SMALLEST_SUM = {"fixed": 1e-6, "mad-lab": 1e-12}


@dataclass(frozen=True, kw_only=True)
class LinearAttentionSpec(MixerSpec):
    """Settings of linear attention.

    mad-lab's own is feature_map="quadratic", compat="mad-lab": about half of its denominators
    are negative at the start, and outputs reach thousands.
    """

    n_heads: int = 16
    """Heads; each has a state of features times value size."""
    feature_map: MapName = "elu"
    """What queries and keys pass: elu, relu, softmax, hedgehog, taylor, or quadratic."""
    normalize: Literal["sum", "rms"] = "sum"
    """Divide by the sum of the weights, or norm each head's output (arXiv:2210.10340)."""
    norm_eps: float = 1e-5
    """Added to the mean square in that norm."""
    compat: Literal["fixed", "mad-lab"] = "fixed"
    """mad-lab: divide by the sum whatever its sign, with nothing but 1e-12 added."""
    kernel: Kernel = "torch"
    """What runs the scan: torch, or fla (flash-linear-attention, on a GPU)."""

    def __post_init__(self) -> None:
        if self.n_heads < 1 or self.d_model % self.n_heads:
            raise ValueError(
                f"n_heads={self.n_heads} does not divide d_model={self.d_model}. Choose a divisor."
            )
        for name, allowed in (
            ("feature_map", MAPS),
            ("normalize", ("sum", "rms")),
            ("compat", tuple(_SMALLEST_SUM)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}."
                )
        check_norm("rms", self.norm_eps)
        is_signed = self.feature_map == "quadratic"
        if self.compat == "mad-lab" and not (is_signed and self.normalize == "sum"):
            raise ValueError(
                "compat='mad-lab' is feature_map='quadratic' with normalize='sum'. Set these too."
            )
        if is_signed and self.normalize == "sum" and self.compat == "fixed":
            raise ValueError(
                "feature_map='quadratic' has weights of both signs, whose sum may be 0. Choose "
                "normalize='rms', or compat='mad-lab' for the original's division."
            )
        check_kernel(self.kernel)

    @property
    def head_size(self) -> int:
        """Channels of one head."""
        return self.d_model // self.n_heads

    @property
    def _features(self) -> int:
        return num_features(self.feature_map, self.head_size)

    def build(self, generator: torch.Generator | None = None) -> LinearAttention:
        return LinearAttention(self, generator)

    def num_parameters(self) -> int:
        maps = 2 * num_map_parameters(self.feature_map, self.head_size)
        return 4 * self.d_model**2 + maps + (self.normalize == "rms") * self.head_size

    def mixing_state_size(self, seq_len: int) -> int:
        """As in mad-lab's count, without the sum of keys (`n_heads` times the features)."""
        return self.n_heads * self._features * self.head_size

    def state_size(self, seq_len: int) -> int:
        keys = self.n_heads * self._features
        return self.mixing_state_size(seq_len) + (self.normalize == "sum") * keys

    def flops_per_token(self, seq_len: int) -> int:
        maps = 2 * self.n_heads * map_flops(self.feature_map, self.head_size)
        # Write and read: two operations each per number of the state.
        return 8 * self.d_model**2 + maps + 4 * self.state_size(seq_len)


class LinearAttention(Mixer):
    """The token mixer; its state: `memory` (batch, H, F, K), and the last column of it, z."""

    spec: LinearAttentionSpec

    def __init__(self, spec: LinearAttentionSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec)
        d_model, bound = spec.d_model, spec.d_model**-0.5
        self.q = uniform_linear(d_model, d_model, generator, bound)
        self.k = uniform_linear(d_model, d_model, generator, bound)
        self.v = uniform_linear(d_model, d_model, generator, bound)
        self.q_map = FeatureMap(spec.feature_map, spec.head_size, generator)
        self.k_map = FeatureMap(spec.feature_map, spec.head_size, generator)
        self.norm = (
            HeadNorm("rms", spec.head_size, spec.norm_eps) if spec.normalize == "rms" else None
        )
        self.output = uniform_linear(d_model, d_model, generator, bound)
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
        q, k, v = (
            linear(x).unflatten(-1, (self.spec.n_heads, -1)) for linear in (self.q, self.k, self.v)
        )  # (B, T, H, K)
        # After the map: a feature of a zero is not zero.
        k = zero_padding(self.k_map(k), padding_mask)
        v = widen(v)
        if self.norm is None:
            v = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
        q, k, v = (heads.transpose(1, 2) for heads in (self.q_map(q), k, v))  # (B, H, T, ...)
        memory = None if state is None else state["memory"]
        y, memory = self.scan(q, k, v, None, memory)
        y = self.output(self._normalized(y).to(x.dtype))
        return y, {"memory": memory} if wants_state else None

    def _normalized(self, y: Tensor) -> Tensor:
        """(B, H, T, K or K + 1) to (B, T, D)."""
        if self.norm is not None:
            normed: Tensor = self.norm(y)
            return normed
        total, smallest = y[..., -1:], _SMALLEST_SUM[self.spec.compat]
        # Nothing was seen yet where the sum is 0, which is at padding.
        total = total.clamp(min=smallest) if self.spec.compat == "fixed" else total + smallest
        return (y[..., :-1] / total).transpose(1, 2).flatten(2)
