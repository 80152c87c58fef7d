"""The projections of an attention layer, around whatever sums along time.

    q, k, v = heads of W x + b          q, k normed and rotated as in the source
    y       = W_o (heads' outputs) + b_o

A mixer that keeps these keeps what the source learned about what to look for and what to say; only
the sum between them changes. Heads, groups of queries, biases, norms and rotary angles are the
source's, so that every copied row keeps its role.

    B batch, T time, D d_model, H heads, G key heads, K channels of a head
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from manticore.conversion.block_spec import QK_NORMS, QKNorm
from manticore.mixers.fresh_weights import uniform_linear
from manticore.mixers.interface import Mixer, MixerSpec
from manticore.mixers.token_shift import zero_padding


@dataclass(frozen=True, kw_only=True)
class HeadsSpec(MixerSpec):
    """The geometry of the heads; a converted model takes it from the source's blocks."""

    n_heads: int = 4
    """Query heads."""
    n_kv_heads: int = 4
    """Heads of keys and values, each shared by n_heads / n_kv_heads queries in order."""
    head_dim: int = 32
    """Channels of a head."""
    qkv_bias: bool = False
    """Whether queries, keys and values have a bias."""
    output_bias: bool = False
    """Whether the output has a bias."""
    qk_norm: QKNorm = "none"
    """Norm of queries and keys before the rotation."""
    qk_norm_eps: float = 1e-6
    """Added to its variance."""
    frequencies: tuple[float, ...] = ()
    """Angle per position of each rotated pair of channels (i, i + R/2)."""
    amplitude: float = 1.0
    """Factor on rotated queries and keys."""
    scale: float = 1.0
    """Factor on the products of queries and keys."""

    def __post_init__(self) -> None:
        if min(self.n_heads, self.n_kv_heads, self.head_dim) < 1 or self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads={self.n_heads}, n_kv_heads={self.n_kv_heads}, head_dim={self.head_dim}: "
                "all must be at least 1, and n_kv_heads must divide n_heads."
            )
        if 2 * len(self.frequencies) > self.head_dim:
            raise ValueError(
                f"{len(self.frequencies)} rotary frequencies turn {2 * len(self.frequencies)} "
                f"channels, but a head has {self.head_dim}. Keep the source's head_dim, or set "
                "rotary: false."
            )
        if self.qk_norm not in QK_NORMS:
            raise ValueError(f"qk_norm={self.qk_norm!r} must be one of {', '.join(QK_NORMS)}.")

    @property
    def query_width(self) -> int:
        """All queries together."""
        return self.n_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """All keys together."""
        return self.n_kv_heads * self.head_dim

    @property
    def _qk_norm_weights(self) -> int:
        if self.qk_norm == "width-rms":
            return self.query_width + self.key_width
        return {"none": 0, "head-rms": 2, "head-layer": 4}[self.qk_norm] * self.head_dim

    @property
    def _matrices(self) -> int:
        return self.d_model * (2 * self.query_width + 2 * self.key_width)

    def num_parameters(self) -> int:
        biases = self.qkv_bias * (self.query_width + 2 * self.key_width)
        return self._matrices + biases + self.output_bias * self.d_model + self._qk_norm_weights


class Heads(Mixer):
    """Projections, norms and rotation; subclasses add the sum along time."""

    spec: HeadsSpec

    def __init__(self, spec: HeadsSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec)
        queries, keys = spec.query_width, spec.key_width
        self.q = _linear(spec.d_model, queries, spec.qkv_bias, generator)
        self.k = _linear(spec.d_model, keys, spec.qkv_bias, generator)
        self.v = _linear(spec.d_model, keys, spec.qkv_bias, generator)
        self.output = _linear(queries, spec.d_model, spec.output_bias, generator)
        self.q_norm, self.k_norm = _qk_norm(spec, queries), _qk_norm(spec, keys)

    def project(
        self, x: Tensor, positions: Tensor, padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, K), keys and values (B, G, T, K); zero at padding before rotation."""
        # A bias would fill the padding, which has to look like the time before the start.
        q, k, v = (zero_padding(linear(x), padding_mask) for linear in (self.q, self.k, self.v))
        q, k, v = self.convolve(q, k, v)
        q, k = self._normed(q, self.q_norm), self._normed(k, self.k_norm)
        q, k = (rotate(h, positions, self.spec.frequencies, self.spec.amplitude) for h in (q, k))
        return q, k, self._by_head(v)

    def convolve(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A hook for mixers with a short convolution."""
        return q, k, v

    def repeated(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of G heads for each of the H query heads."""
        groups = self.spec.n_heads // self.spec.n_kv_heads
        if groups == 1:
            return k, v
        return k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.spec.head_dim)).transpose(1, 2)

    def _normed(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        if norm is None:
            return self._by_head(x)
        if self.spec.qk_norm == "width-rms":
            return self._by_head(norm(x))
        normed: Tensor = norm(self._by_head(x))
        return normed


def rotate(
    x: Tensor, positions: Tensor, frequencies: tuple[float, ...], amplitude: float = 1.0
) -> Tensor:
    """Turn channels (i, i + R/2) of (B, H, T, K) by position times frequency i of R/2."""
    if not frequencies:
        return x
    dtype = torch.promote_types(x.dtype, torch.float32)
    per_step = torch.tensor(frequencies, device=x.device, dtype=torch.float32)
    angles = positions[:, None, :, None].to(dtype) * per_step  # (B or 1, 1, T, R/2)
    cosine, sine = angles.cos() * amplitude, angles.sin() * amplitude
    first, second = x[..., : 2 * len(frequencies)].chunk(2, dim=-1)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    rest = x[..., 2 * len(frequencies) :]
    return torch.cat([*(part.to(x.dtype) for part in turned), rest], dim=-1)


def constant_linear(d_in: int, d_out: int, value: float | Tensor) -> nn.Linear:
    """A map that starts as a constant, whatever the input."""
    linear = nn.utils.skip_init(nn.Linear, d_in, d_out)
    assert isinstance(linear, nn.Linear)
    nn.init.zeros_(linear.weight)
    with torch.no_grad():
        linear.bias.copy_(torch.as_tensor(value).expand(d_out))
    return linear


def _linear(d_in: int, d_out: int, has_bias: bool, generator: torch.Generator | None) -> nn.Linear:
    linear = uniform_linear(d_in, d_out, generator, d_in**-0.5)
    if has_bias:
        linear.bias = nn.Parameter(torch.zeros(d_out))
    return linear


def _qk_norm(spec: HeadsSpec, width: int) -> Any:
    if spec.qk_norm == "none":
        return None
    if spec.qk_norm == "head-layer":
        return nn.LayerNorm(spec.head_dim, eps=spec.qk_norm_eps)
    return nn.RMSNorm(width if spec.qk_norm == "width-rms" else spec.head_dim, eps=spec.qk_norm_eps)
