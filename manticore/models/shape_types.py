"""The sizes of one layer, and what they cost."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from manticore.mixers.interface import MixerSpec
from manticore.models.amounts import CacheBytes, Flops

SCAN_FORWARD = (7, 5)
"""Operations for each (token, channel, state) and for each (token, channel)."""
SCAN_BACKWARD = (15, 10)


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """The sizes in one layer from which everything else follows."""

    matrices: tuple[tuple[int, int, bool], ...]
    """(inputs, outputs, has a bias) of every matrix product."""
    other_parameters: int
    """Norms and whatever else is in no matrix and no convolution."""
    final_norm: int
    """Parameters of the norm after the last layer."""
    attention_width: int = 0
    """Heads times head size, for queries."""
    kv_width: int = 0
    """Heads times head size, for keys."""
    window: int | None = None
    """Keys that a token sees, itself included; None: all before it."""
    channels: int = 0
    """Channels of convolution and scan."""
    kernel: int = 0
    """Width of the convolution."""
    states: int = 0
    """State size N of the scan, per channel."""

    @property
    def parameters(self) -> int:
        """Of one layer."""
        dense = sum(a * b + b * bias for a, b, bias in self.matrices)
        return dense + self.channels * self.kernel + self.other_parameters

    def forward_flops(self, seq_len: int, count: int = 1) -> Flops:
        """Per token, of `count` layers."""
        return self._flops(seq_len, count, 1, SCAN_FORWARD)

    def training_flops(self, seq_len: int, count: int = 1) -> Flops:
        """Per token, forward and backward, of `count` layers."""
        both = (SCAN_FORWARD[0] + SCAN_BACKWARD[0], SCAN_FORWARD[1] + SCAN_BACKWARD[1])
        return self._flops(seq_len, count, 3, both)

    def cache_bytes(self, length: int, dtype: torch.dtype) -> CacheBytes:
        """Cache of one sequence after `length` tokens, of one layer."""
        scan_itemsize = max(dtype.itemsize, torch.float32.itemsize)
        # Of a window, transformers keeps what the next token will still see.
        kept = length if self.window is None else min(length, self.window - 1)
        return CacheBytes(
            state=self.channels * (self.kernel * dtype.itemsize + self.states * scan_itemsize),
            kv=kept * 2 * self.kv_width * dtype.itemsize,
        )

    def _flops(self, seq_len: int, count: int, passes: int, scan: tuple[int, int]) -> Flops:
        return Flops(
            matmul=count * passes * sum(2 * a * b for a, b, _ in self.matrices),
            convolution=count * passes * 2 * self.channels * self.kernel,
            attention=count * passes * 4 * seq_len * self.attention_width,
            scan=count * self.channels * (scan[0] * self.states + scan[1]),
        )


@dataclass(frozen=True)
class MixerShape:
    """One layer of a model built from mixers: the mixer's own formulas, and a norm."""

    spec: MixerSpec
    norm: int
    """Parameters of the norm before the mixer."""
    window: ClassVar[None] = None
    """The mixer's formulas know their own."""

    @property
    def parameters(self) -> int:
        """Of the layer."""
        return self.spec.num_parameters() + self.norm

    @property
    def final_norm(self) -> int:
        """Parameters of the norm after the last layer."""
        return self.norm

    def forward_flops(self, seq_len: int, count: int = 1) -> Flops:
        """Per token, of `count` layers."""
        return Flops(mixer=count * self.spec.flops_per_token(seq_len))

    def training_flops(self, seq_len: int, count: int = 1) -> Flops:
        """Per token, forward and backward: a backward pass counts as two forward ones."""
        return Flops(mixer=3 * count * self.spec.flops_per_token(seq_len))

    def cache_bytes(self, length: int, dtype: torch.dtype) -> CacheBytes:
        """Cache of one sequence after `length` tokens; see `cache_bytes` for what is float32."""
        return mixer_cache_bytes(self.spec, length, dtype)


def mixer_cache_bytes(spec: MixerSpec, length: int, dtype: torch.dtype) -> CacheBytes:
    """Cache of one mixer: keys and values in the model's dtype, states in float32 or better."""
    found, wide = CacheBytes(), max(dtype.itemsize, torch.float32.itemsize)
    for branch in spec.branches:
        mixing, all_of_it = branch.mixing_state_size(length), branch.state_size(length)
        if branch.state_size(1) < branch.state_size(2):  # keys and values, or a window
            found += CacheBytes(kv=all_of_it * dtype.itemsize)
        else:
            found += CacheBytes(state=mixing * wide + (all_of_it - mixing) * dtype.itemsize)
    return found
