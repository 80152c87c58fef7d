"""What a converted layer costs: its mixer by the mixer's formulas, its MLP, its norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from manticore.conversion import feed_forward
from manticore.conversion.block_spec import BlockSpec
from manticore.mixers.interface import MixerSpec
from manticore.models.amounts import CacheBytes, Flops
from manticore.models.shape_types import mixer_cache_bytes


@dataclass(frozen=True)
class ConvertedShape:
    """One layer, for `manticore.models.costs`."""

    block: BlockSpec
    spec: MixerSpec
    """Of the token mixer."""
    window: ClassVar[None] = None
    """The mixer's formulas know their own."""

    @property
    def final_norm(self) -> int:
        """Parameters of a norm of the stream."""
        return self.block.hidden_size * (1 if self.block.norm == "rms" else 2)

    @property
    def parameters(self) -> int:
        """Of the layer."""
        norms = self.final_norm * (1 if self.block.shared_norm else 2)
        return self.spec.num_parameters() + feed_forward.num_parameters(self.block) + norms

    def forward_flops(self, seq_len: int, count: int = 1) -> Flops:
        """Per token, of `count` layers."""
        mlp = feed_forward.flops_per_token(self.block)
        return Flops(mixer=count * self.spec.flops_per_token(seq_len), matmul=count * mlp)

    def training_flops(self, seq_len: int, count: int = 1) -> Flops:
        """Per token, forward and backward: a backward pass counts as two forward ones."""
        return self.forward_flops(seq_len, 3 * count)

    def cache_bytes(self, length: int, dtype: torch.dtype) -> CacheBytes:
        """Cache of one sequence after `length` tokens."""
        return mixer_cache_bytes(self.spec, length, dtype)
