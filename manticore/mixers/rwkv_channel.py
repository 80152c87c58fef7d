"""The channel mixers of RWKV-5, 6 and 7: a squared ReLU MLP that also reads the token before.

    5, 6:  y = sigmoid(W_r x_r) W_v relu(W_k x_k)^2      arXiv:2404.05892
    7:     y = W_v relu(W_k x_k)^2                       arXiv:2503.14456

x_r and x_k are blends of a token with its predecessor. Version 5 stores the share of the present
token, 6 and 7 that of the earlier one; the maps are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manticore.mixers.fresh_weights import orthogonal_linear
from manticore.mixers.interface import Mixer, State
from manticore.mixers.rwkv_heads import RWKVSpec, position_of_channel
from manticore.mixers.token_shift import last_real_tokens, token_before, zero_padding


@dataclass(frozen=True, kw_only=True)
class RWKVChannelSpec(RWKVSpec):
    """Settings of RWKV's channel mixer."""

    kind: ClassVar[Literal["token", "channel"]] = "channel"

    version: int = 6
    """Of RWKV: 5, 6 or 7."""
    expand: float = 4.0
    """Inner width as a multiple of d_model; the published 5 and 6 have 3.5."""
    output_gain: float = 0.5
    """Size of the output map at the start; the published models start it at 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version not in (5, 6, 7):
            raise ValueError(f"version={self.version} must be 5, 6 or 7.")
        if round(self.d_model * self.expand) < 1:
            raise ValueError(f"expand={self.expand} must leave d_model * expand >= 1.")

    @property
    def inner_width(self) -> int:
        """Width between the two maps."""
        return round(self.d_model * self.expand)

    @property
    def has_receptance(self) -> bool:
        """Whether a gate in (0, 1) multiplies the output."""
        return self.version != 7

    def build(self, generator: torch.Generator | None = None) -> RWKVChannel:
        return RWKVChannel(self, generator)

    def num_parameters(self) -> int:
        maps = 2 * self.inner_width + self.d_model * self.has_receptance
        return self.d_model * (maps + 1 + self.has_receptance)

    def state_size(self, seq_len: int) -> int:
        return self.d_model

    def mixing_state_size(self, seq_len: int) -> int:
        return 0

    def flops_per_token(self, seq_len: int) -> int:
        return 2 * self.d_model * (2 * self.inner_width + self.d_model * self.has_receptance)


class RWKVChannel(Mixer):
    """The channel mixer; state: `last` (batch, 1, d_model), the token before."""

    spec: RWKVChannelSpec

    def __init__(self, spec: RWKVChannelSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec)
        d_model = spec.d_model
        self.key = orthogonal_linear(d_model, spec.inner_width, generator)
        self.value = orthogonal_linear(spec.inner_width, d_model, generator, spec.output_gain)
        self.blend_key = nn.Parameter(_first_blend(spec))
        if spec.has_receptance:
            self.receptance = orthogonal_linear(d_model, d_model, generator, spec.output_gain)
            self.blend_receptance = nn.Parameter(_first_blend(spec))

    def mix(
        self,
        x: Tensor,
        state: State | None,
        padding_mask: Tensor | None,
        positions: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, State | None]:
        x = zero_padding(x, padding_mask)
        last = None if state is None else state["last"]
        earlier = token_before(x, last)
        y = self.value(F.relu(self.key(self._blend(x, earlier, self.blend_key))).square())
        if self.spec.has_receptance:
            x_r = self._blend(x, earlier, self.blend_receptance)
            y = torch.sigmoid(self.receptance(x_r)) * y
        if not wants_state:
            return y, None
        return y, {"last": last_real_tokens(x, last, 1, padding_mask)}

    def _blend(self, x: Tensor, earlier: Tensor, share: Tensor) -> Tensor:
        if self.spec.version == 5:
            return torch.lerp(earlier, x, share)
        return torch.lerp(x, earlier, share)


def _first_blend(spec: RWKVChannelSpec) -> Tensor:
    place = position_of_channel(spec.d_model)
    if spec.version == 7:
        return 1 - place ** (spec.height**4)
    present = place**spec.height
    return present if spec.version == 5 else 1 - present
