"""The MLP of the transformer: widen, GELU, narrow (arXiv:1706.03762, section 3.3).

y = W_out gelu(W_in x)                                   without biases, as mad-lab has it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from manticore.mixers.fresh_weights import uniform_linear
from manticore.mixers.interface import Mixer, MixerSpec, State


@dataclass(frozen=True, kw_only=True)
class MLPSpec(MixerSpec):
    """Settings of the MLP."""

    kind: ClassVar[Literal["token", "channel"]] = "channel"

    expand: float = 4.0
    """Inner width as a multiple of d_model."""

    def __post_init__(self) -> None:
        if self.d_model < 1 or self.inner_width < 1:
            raise ValueError(
                f"d_model={self.d_model} and expand={self.expand} must leave both widths >= 1."
            )

    @property
    def inner_width(self) -> int:
        """Width between the two maps."""
        return round(self.d_model * self.expand)

    def build(self, generator: torch.Generator | None = None) -> MLP:
        return MLP(self, generator)

    def num_parameters(self) -> int:
        return 2 * self.d_model * self.inner_width

    def state_size(self, seq_len: int) -> int:
        return 0

    def flops_per_token(self, seq_len: int) -> int:
        return 2 * self.num_parameters()


class MLP(Mixer):
    """The channel mixer; it keeps no state."""

    spec: MLPSpec

    def __init__(self, spec: MLPSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec)
        d_model, inner = spec.d_model, spec.inner_width
        # torch's own start of a linear map: uniform within 1 / sqrt(inputs).
        self.up = uniform_linear(d_model, inner, generator, d_model**-0.5)
        self.down = uniform_linear(inner, d_model, generator, inner**-0.5)

    def mix(
        self,
        x: Tensor,
        state: State | None,
        padding_mask: Tensor | None,
        positions: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, State | None]:
        y = self.down(F.gelu(self.up(x), approximate="tanh"))
        return y, {} if wants_state else None
