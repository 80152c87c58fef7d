"""Hyena experts: each token reads the k groups of Hyena's channels that its router prefers.

    y = Hyena's gated convolution (C channels);   w = top_k_weights(W_r u + c)
    out = W_out sum_e w_e y_e,                     y_e the channels of expert e, C / experts of them

(Poli et al., 2024, arXiv:2403.17844, "sparse parallel" layers.) All experts are computed: what is
sparse is which of them a token reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manticore.mixers.fresh_weights import uniform_linear
from manticore.mixers.hyena import Hyena, HyenaSpec
from manticore.mixers.top_k_routing import check_experts, top_k_weights


@dataclass(frozen=True, kw_only=True)
class HyenaExpertsSpec(HyenaSpec):
    """Settings of Hyena experts, at mad-lab's sizes."""

    groups: int = 1
    """Channels as a multiple of d_model."""
    filter_width: int = 16
    """Width of the network that says the filters; the iso-state rule counts channels times it."""
    n_experts: int = 8
    """Groups of channels."""
    top_k: int = 2
    """Groups that a token reads. `compat="mad-lab"` also restores its routing; see
    `top_k_routing`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_experts(self.n_experts, self.top_k, self.compat)
        if self.channels % self.n_experts:
            raise ValueError(
                f"n_experts={self.n_experts} does not divide the {self.channels} channels. "
                "Choose a divisor, or change d_model or groups."
            )

    @property
    def expert_width(self) -> int:
        """Channels of one expert."""
        return self.channels // self.n_experts

    def build(self, generator: torch.Generator | None = None) -> HyenaExperts:
        return HyenaExperts(self, generator)

    def num_parameters(self) -> int:
        unread = (self.channels - self.expert_width) * self.d_model
        return super().num_parameters() - unread + (self.d_model + 1) * self.n_experts

    def flops_per_token(self, seq_len: int) -> int:
        unread = (self.channels - self.expert_width) * self.d_model
        router, choice = self.d_model * self.n_experts, self.channels
        return super().flops_per_token(seq_len) + 2 * (router + choice - unread)


class HyenaExperts(Hyena):
    """The token mixer; its state is Hyena's."""

    spec: HyenaExpertsSpec

    def __init__(self, spec: HyenaExpertsSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec, generator)
        d_model, width = spec.d_model, spec.expert_width
        self.output = uniform_linear(width, d_model, generator, width**-0.5)
        self.router = uniform_linear(d_model, spec.n_experts, generator, d_model**-0.5)
        self.router_bias = nn.Parameter(torch.zeros(spec.n_experts))

    def expert_weights(self, x: Tensor) -> Tensor:
        """How much of each expert a token reads: (batch, seq, experts), rows sum to 1."""
        scores = self.router(x) + self.router_bias
        return top_k_weights(scores, self.spec.top_k, self.spec.compat)

    def _read(self, y: Tensor, x: Tensor) -> Tensor:
        by_expert = y.unflatten(-1, (self.spec.expert_width, self.spec.n_experts))
        chosen = (by_expert * self.expert_weights(x).unsqueeze(-2)).sum(dim=-1)
        return self.output(chosen) + self.output_bias
