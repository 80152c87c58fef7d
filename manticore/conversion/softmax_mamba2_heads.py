"""The source's own attention, kept, and a Mamba-2 beside it: Falcon-H1's layers by conversion.

    y = attention(x) + mamba2(x)          mamba2(x) = 0 at the start

The map out of Mamba-2 starts at zero, so the converted model starts as its source. The sum is
that of `manticore.mixers.attention_mamba2` (arXiv:2507.22448).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from manticore.conversion.softmax_heads import SoftmaxHeads, SoftmaxHeadsSpec
from manticore.mixers.attention_mamba2 import BesideMamba2, BesideMamba2Spec, only


@dataclass(frozen=True, kw_only=True)
class SoftmaxMamba2HeadsSpec(BesideMamba2Spec, SoftmaxHeadsSpec):
    """Softmax attention as in the source, and the settings of Mamba-2 behind `mamba_`."""

    @property
    def attention(self) -> SoftmaxHeadsSpec:
        """The branch beside Mamba-2."""
        return only(SoftmaxHeadsSpec, self)

    def build(self, generator: torch.Generator | None = None) -> SoftmaxMamba2Heads:
        return SoftmaxMamba2Heads(self, generator)


class SoftmaxMamba2Heads(BesideMamba2, SoftmaxHeads):
    """The token mixer."""

    spec: SoftmaxMamba2HeadsSpec

    def __init__(
        self, spec: SoftmaxMamba2HeadsSpec, generator: torch.Generator | None = None
    ) -> None:
        SoftmaxHeads.__init__(self, spec, generator)
        mamba2 = spec.mamba2.build(generator)
        nn.init.zeros_(mamba2.output.weight)
        self.mamba2 = mamba2
