"""Mamba whose selection is normed, as in Jamba (Lieber et al., 2024, arXiv:2403.19887).

    r, B, C = W_x x        dt = softplus(W_dt RMSNorm(r) + b),  RMSNorm(B),  RMSNorm(C)

In large models these grow, and the loss has spikes; the norms end that. The rest is Mamba.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manticore.mixers.mamba import Mamba, MambaSpec


@dataclass(frozen=True, kw_only=True)
class NormedMambaSpec(MambaSpec):
    """Settings of Mamba, and of the norms."""

    norm_eps: float = 1e-6
    """Added to the mean square in the norms."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm_eps <= 0:
            raise ValueError(f"norm_eps={self.norm_eps} must be greater than 0, such as 1e-6.")

    @property
    def selected(self) -> tuple[int, int, int]:
        """Channels of r, B and C."""
        return self.rank, self.d_state, self.d_state

    def build(self, generator: torch.Generator | None = None) -> NormedMamba:
        return NormedMamba(self, generator)

    def num_parameters(self) -> int:
        return super().num_parameters() + sum(self.selected)


class NormedMamba(Mamba):
    """The token mixer; its state is Mamba's."""

    spec: NormedMambaSpec

    def __init__(self, spec: NormedMambaSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec, generator)
        self.step_norm, self.b_norm, self.c_norm = (
            nn.RMSNorm(channels, eps=spec.norm_eps) for channels in spec.selected
        )

    def _normed(self, low_rank: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.step_norm(low_rank), self.b_norm(B), self.c_norm(C)
