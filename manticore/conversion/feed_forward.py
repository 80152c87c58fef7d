"""The source's channel mixer: an MLP, plain or gated, with its own activation and biases.

mlp      down(act(up x))                 gated    down(act(gate x) * up x)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from manticore.conversion.block_spec import BlockSpec
from manticore.models.mixer_parts import linear


class FeedForward(nn.Module):
    """(batch, seq, d_model) to the same, each position by itself."""

    def __init__(self, block: BlockSpec, generator: torch.Generator | None = None) -> None:
        super().__init__()
        d_model, inner = block.hidden_size, block.intermediate_size
        bias = True if block.mlp_bias else None
        self.gate = (
            linear(d_model, inner, generator, bias) if block.channel_mixer == "gated" else None
        )
        self.up = linear(d_model, inner, generator, bias)
        self.down = linear(inner, d_model, generator, bias)
        self.act = ACT2FN[block.activation]

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        y: Tensor = self.act(up) if self.gate is None else self.act(self.gate(x)) * up
        down: Tensor = self.down(y)
        return down


def num_parameters(block: BlockSpec) -> int:
    """Trainable numbers of a `FeedForward`."""
    wide = 2 if block.channel_mixer == "gated" else 1
    biases = block.mlp_bias * (wide * block.intermediate_size + block.hidden_size)
    return (wide + 1) * block.hidden_size * block.intermediate_size + biases


def flops_per_token(block: BlockSpec) -> int:
    """Floating-point operations of the forward pass: products only."""
    wide = 2 if block.channel_mixer == "gated" else 1
    return 2 * (wide + 1) * block.hidden_size * block.intermediate_size
