"""The gated MLP of Llama: one map gates another (Shazeer, 2020, arXiv:2002.05202).

y = W_3 (silu(W_1 x) * W_2 x)                            without biases
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from manticore.mixers.fresh_weights import uniform_linear
from manticore.mixers.interface import Mixer, MixerSpec, State

_MULTIPLE = 16


@dataclass(frozen=True, kw_only=True)
class SwiGLUSpec(MixerSpec):
    """Settings of the gated MLP."""

    kind: ClassVar[Literal["token", "channel"]] = "channel"

    inner_width: int | None = None
    """Width of the gate; None: 8/3 of d_model, rounded up to a multiple of 16, so that the three
    maps have about as many weights as the two of an MLP four times as wide."""

    def __post_init__(self) -> None:
        if self.d_model < 1 or self.width < 1:
            raise ValueError(
                f"d_model={self.d_model} and inner_width={self.inner_width} must be at least 1."
            )

    @property
    def width(self) -> int:
        """Width of the gate."""
        if self.inner_width is not None:
            return self.inner_width
        return _MULTIPLE * -(-int(8 * self.d_model / 3) // _MULTIPLE)

    def build(self, generator: torch.Generator | None = None) -> SwiGLU:
        return SwiGLU(self, generator)

    def num_parameters(self) -> int:
        return 3 * self.d_model * self.width

    def state_size(self, seq_len: int) -> int:
        return 0

    def flops_per_token(self, seq_len: int) -> int:
        return 2 * self.num_parameters()


class SwiGLU(Mixer):
    """The channel mixer; it keeps no state."""

    spec: SwiGLUSpec

    def __init__(self, spec: SwiGLUSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec)
        d_model, width = spec.d_model, spec.width
        # torch's own start of a linear map: uniform within 1 / sqrt(inputs).
        self.gate = uniform_linear(d_model, width, generator, d_model**-0.5)
        self.up = uniform_linear(d_model, width, generator, d_model**-0.5)
        self.down = uniform_linear(width, d_model, generator, width**-0.5)

    def mix(
        self,
        x: Tensor,
        state: State | None,
        padding_mask: Tensor | None,
        positions: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, State | None]:
        y = self.down(F.silu(self.gate(x)) * self.up(x))
        return y, {} if wants_state else None
