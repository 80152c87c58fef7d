"""The gated short convolution of LFM2: a few taps between two gates (arXiv:2511.23404).

    B, C, x = W_in u        y = W_out (C * conv(B * x))

(Liquid AI, 2025.) It sees no further than its taps, so it needs company that does; for that it
costs little and remembers a constant few tokens.

    B batch, T time, D d_model
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from manticore.mixers.fresh_weights import uniform_linear
from manticore.mixers.interface import Mixer, MixerSpec, State
from manticore.mixers.short_conv import ShortConv
from manticore.mixers.token_shift import zero_padding


@dataclass(frozen=True, kw_only=True)
class GatedConvSpec(MixerSpec):
    """Settings of the gated short convolution."""

    conv_size: int = 3
    """Taps of the convolution, the present token included."""

    def __post_init__(self) -> None:
        for name in ("d_model", "conv_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")

    def build(self, generator: torch.Generator | None = None) -> GatedConv:
        return GatedConv(self, generator)

    def num_parameters(self) -> int:
        return 4 * self.d_model**2 + self.conv_size * self.d_model

    def state_size(self, seq_len: int) -> int:
        return (self.conv_size - 1) * self.d_model

    def flops_per_token(self, seq_len: int) -> int:
        return 2 * self.num_parameters()


class GatedConv(Mixer):
    """The token mixer; its state is `before` (batch, taps - 1, D)."""

    spec: GatedConvSpec

    def __init__(self, spec: GatedConvSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec)
        d_model = spec.d_model
        self.input = uniform_linear(d_model, 3 * d_model, generator, d_model**-0.5)
        self.conv = ShortConv(d_model, spec.conv_size, generator)
        self.output = uniform_linear(d_model, d_model, generator, d_model**-0.5)

    def mix(
        self,
        x: Tensor,
        state: State | None,
        padding_mask: Tensor | None,
        positions: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, State | None]:
        before = None if state is None else state["before"]
        maps = self.input(zero_padding(x, padding_mask))
        write, read, x = maps.chunk(3, dim=-1)  # each (B, T, D)
        y, before = self.conv(write * x, before, padding_mask, wants_state)
        y = self.output(read * y)
        if not wants_state:
            return y, None
        assert before is not None
        return y, {"before": before}
