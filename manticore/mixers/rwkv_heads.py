"""What the time mixers of RWKV-5, 6 and 7 share: heads, the norm after them, depth, first weights.

The published models start every number of a layer from its depth; the sizes here are those of the
authors' training code, which the papers refer to (arXiv:2404.05892, arXiv:2503.14456).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manticore.mixers.fresh_weights import orthogonal_linear
from manticore.mixers.interface import MixerSpec
from manticore.mixers.precision import widen
from manticore.mixers.scan_choice import Kernel, check_kernel


@dataclass(frozen=True, kw_only=True)
class RWKVSpec(MixerSpec):
    """Settings that every part of an RWKV layer has."""

    layer_index: int = 0
    """Which layer this is, from 0: the first weights depend on the depth."""
    n_layers: int = 1
    """How many layers the model has."""

    def __post_init__(self) -> None:
        if not 0 <= self.layer_index < self.n_layers:
            raise ValueError(
                f"layer_index={self.layer_index} must be 0 to n_layers - 1, "
                f"and n_layers={self.n_layers}."
            )

    @property
    def depth(self) -> float:
        """0 at the first layer, 1 at the last."""
        return self.layer_index / max(1, self.n_layers - 1)

    @property
    def height(self) -> float:
        """1 at the first layer, nearly 0 at the last."""
        return 1 - self.layer_index / self.n_layers


@dataclass(frozen=True, kw_only=True)
class RWKVTimeSpec(RWKVSpec):
    """Settings that every RWKV time mixer has."""

    head_size: int = 16
    """Channels of a head, for keys and for values; its state is this squared."""
    norm_eps: float = 64e-5
    """Added to the variance in each head's norm. The authors divide by 8 before a norm with 1e-5,
    which is the same."""
    output_gain: float = 0.5
    """Size of the output map at the start; the published models start it at 0."""
    kernel: Kernel = "torch"
    """What runs the scan: torch, or fla (flash-linear-attention, on a GPU)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_size < 1 or self.d_model % self.head_size:
            raise ValueError(
                f"head_size={self.head_size} does not divide d_model={self.d_model}. "
                "Choose a head_size that does (64 in the published models)."
            )
        check_kernel(self.kernel)

    @property
    def n_heads(self) -> int:
        """Heads, each with its own state."""
        return self.d_model // self.head_size

    def mixing_state_size(self, seq_len: int) -> int:
        return self.d_model * self.head_size

    def state_size(self, seq_len: int) -> int:
        return self.mixing_state_size(seq_len) + self.d_model  # and the token before


class HeadNorm(nn.Module):
    """Layer norm of each head by itself, with a weight and a bias for every channel."""

    def __init__(self, spec: RWKVTimeSpec, weight: float = 1.0) -> None:
        super().__init__()
        self.eps = spec.norm_eps
        self.weight = nn.Parameter(torch.full((spec.d_model,), weight))
        self.bias = nn.Parameter(torch.zeros(spec.d_model))

    def forward(self, y: Tensor) -> Tensor:
        """Norm (batch, heads, seq, channels); return (batch, seq, d_model), float32 or better."""
        y = F.layer_norm(widen(y), y.shape[-1:], eps=self.eps)
        return y.transpose(1, 2).flatten(2) * widen(self.weight) + widen(self.bias)


def split_heads(x: Tensor, head_size: int) -> Tensor:
    """(batch, seq, d_model) to (batch, heads, seq, head_size)."""
    return x.unflatten(-1, (-1, head_size)).transpose(1, 2)


def position_of_channel(d_model: int) -> Tensor:
    """From 0 at the first channel to just below 1 at the last."""
    return torch.arange(d_model) / d_model


def even_steps(d_model: int) -> Tensor:
    """From 0 at the first channel to 1 at the last."""
    return torch.arange(d_model) / max(1, d_model - 1)


class LowRank(nn.Module):
    """bias + B f(A x): a map of low rank that starts at its bias, as A starts at zero."""

    def __init__(
        self,
        d_in: int,
        rank: int,
        d_out: int,
        generator: torch.Generator | None,
        bias: Tensor | None = None,
        gain: float = 0.1,
    ) -> None:
        super().__init__()
        self.down = orthogonal_linear(d_in, rank, generator, gain=0.0)
        self.up = orthogonal_linear(rank, d_out, generator, gain)
        self.bias = None if bias is None else nn.Parameter(bias.clone())

    def forward(self, x: Tensor, activation: str = "identity") -> Tensor:
        """Map (..., d_in) to (..., d_out); activation: identity, tanh or sigmoid."""
        inner = self.down(x)
        if activation != "identity":
            inner = getattr(torch, activation)(inner)
        y: Tensor = self.up(inner)
        return y if self.bias is None else y + self.bias
