"""What follows a sum along time: each head's output is normed, then gated by the input."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manticore.mixers.precision import widen

NormKind = Literal["rms", "group", "none"]
NORM_KINDS = ("rms", "group", "none")


class HeadNorm(nn.Module):
    """Norm of each head by itself, so that the size of a state leaves the size of the output.

    `rms` divides by the root of the mean square and has one weight per channel, shared by the
    heads (arXiv:2312.06635, section 4.4); `group` takes the mean away too and has no weights
    (arXiv:2307.08621, equation 8); `none` does nothing.
    """

    def __init__(self, kind: NormKind, channels: int, eps: float) -> None:
        super().__init__()
        self.kind, self.eps = kind, eps
        self.weight = nn.Parameter(torch.ones(channels)) if kind == "rms" else None

    def forward(self, y: Tensor, gate: Tensor | None = None) -> Tensor:
        """Norm (batch, heads, seq, channels) to (batch, seq, heads * channels), times silu(gate).

        `gate` is (batch, seq, heads * channels), or None. Computed in float32 or better.
        """
        dtype, y = y.dtype, widen(y.transpose(1, 2))
        if self.kind == "group":
            y = y - y.mean(-1, keepdim=True)
        if self.kind != "none":
            y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        if self.weight is not None:
            y = y * self.weight
        y = y.flatten(2)
        return (y if gate is None else y * F.silu(widen(gate))).to(dtype)


def num_norm_parameters(kind: NormKind, channels: int) -> int:
    """Trainable numbers of a `HeadNorm`."""
    return channels if kind == "rms" else 0


def check_norm(kind: str, eps: float) -> None:
    """Refuse a norm that does not exist."""
    if kind not in NORM_KINDS:
        raise ValueError(f"output_norm={kind!r} must be one of {', '.join(NORM_KINDS)}.")
    if eps <= 0:
        raise ValueError(f"norm_eps={eps} must be greater than 0, such as 1e-5.")
