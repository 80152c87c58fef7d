"""A mixture of small MLPs: each token uses the k that its router prefers (arXiv:1701.06538).

    y = sum_e w_e W_down,e (gelu(W_gate,e x) * W_up,e x),    w = top_k_weights(W_router x)

All experts are computed and most are multiplied by zero: at these sizes (8 experts 16 wide) one
product over all of them is faster than gathering tokens, and it runs under vmap. The FLOPs are
those of the active experts, as the literature counts them.

mad-lab narrows with one dense map from the hidden units of all experts to an output for each, so
that no expert is one by itself (165,000 parameters at d_model 128 where this has 50,176), and
carries a parameter `gates` that nothing uses. `compat="mad-lab"` restores its routing, not that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from manticore.mixers.fresh_weights import uniform_linear
from manticore.mixers.interface import Mixer, MixerSpec, State
from manticore.mixers.top_k_routing import Compat, check_experts, top_k_weights


@dataclass(frozen=True, kw_only=True)
class MoEMLPSpec(MixerSpec):
    """Settings of the mixture of MLPs."""

    kind: ClassVar[Literal["token", "channel"]] = "channel"

    n_experts: int = 8
    """How many MLPs there are."""
    top_k: int = 2
    """How many of them a token uses."""
    expert_width: int = 16
    """Inner width of one MLP."""
    compat: Compat = "fixed"
    """`mad-lab`: inactive experts keep some weight; see `top_k_routing`."""

    def __post_init__(self) -> None:
        check_experts(self.n_experts, self.top_k, self.compat)
        if self.d_model < 1 or self.expert_width < 1:
            raise ValueError(
                f"d_model={self.d_model} and expert_width={self.expert_width} must be at least 1."
            )

    def build(self, generator: torch.Generator | None = None) -> MoEMLP:
        return MoEMLP(self, generator)

    def num_parameters(self) -> int:
        return self.n_experts * (self.d_model + 3 * self.d_model * self.expert_width)

    def state_size(self, seq_len: int) -> int:
        return 0

    def flops_per_token(self, seq_len: int) -> int:
        active = self.top_k * 3 * self.d_model * self.expert_width
        return 2 * (self.d_model * self.n_experts + active)


class MoEMLP(Mixer):
    """The channel mixer; it keeps no state."""

    spec: MoEMLPSpec

    def __init__(self, spec: MoEMLPSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec)
        d_model, inner = spec.d_model, spec.n_experts * spec.expert_width
        bound = d_model**-0.5
        self.router = uniform_linear(d_model, spec.n_experts, generator, bound)
        self.gate = uniform_linear(d_model, inner, generator, bound)
        self.up = uniform_linear(d_model, inner, generator, bound)
        self.down = uniform_linear(inner, d_model, generator, spec.expert_width**-0.5)

    def expert_weights(self, x: Tensor) -> Tensor:
        """How much of each expert a token uses: (batch, seq, experts), rows sum to 1."""
        return top_k_weights(self.router(x), self.spec.top_k, self.spec.compat)

    def mix(
        self,
        x: Tensor,
        state: State | None,
        padding_mask: Tensor | None,
        positions: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, State | None]:
        hidden = F.gelu(self.gate(x)) * self.up(x)  # (B, T, experts * width)
        weights = self.expert_weights(x).repeat_interleave(self.spec.expert_width, dim=-1)
        return self.down(hidden * weights), {} if wants_state else None
