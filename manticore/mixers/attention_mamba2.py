"""Attention and Mamba-2 side by side, as in Falcon-H1 (Zuo et al., 2025, arXiv:2507.22448).

    y = attention(x) + mamba2(x)

One branch looks tokens up, the other sums them up; both read the same input. What stands beside
Mamba-2 may be any attention, so both halves of that are here, and a model's own attention
(`manticore.conversion.softmax_mamba2_heads`) gets its companion from the same lines.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from manticore.mixers.attention import Attention, AttentionSpec
from manticore.mixers.interface import Mixer, MixerSpec, State
from manticore.mixers.mamba2 import Mamba2Spec
from manticore.mixers.scan_choice import Kernel

_BESIDE = "mamba2."
_Spec = TypeVar("_Spec", bound=MixerSpec)


@dataclass(frozen=True, kw_only=True)
class BesideMamba2Spec(MixerSpec):
    """Settings of the Mamba-2 beside an attention; `Mamba2Spec` says what each is."""

    mamba_expand: int = 2
    """Inner width as a multiple of d_model."""
    mamba_d_state: int = 4
    """States of each channel; the published models have 128 or 256."""
    mamba_head_dim: int = 16
    """Channels of a head, which share a decay."""
    mamba_n_groups: int = 1
    """Groups of heads, which share keys and queries."""
    mamba_conv_size: int = 4
    """Taps of the short convolution."""
    mamba_norm_eps: float = 1e-5
    """Added to the mean square in the output's norm."""
    kernel: Kernel = "torch"
    """What runs the scan: torch, or fla (flash-linear-attention, on a GPU)."""

    def __post_init__(self) -> None:
        # A specification checks its settings when it is made.
        _ = self.attention
        try:
            _ = self.mamba2
        except ValueError as error:
            raise ValueError(f"Mamba-2 beside attention, settings mamba_*: {error}") from None

    @property
    @abstractmethod
    def attention(self) -> MixerSpec:
        """The branch beside Mamba-2."""

    @property
    def mamba2(self) -> Mamba2Spec:
        """The branch beside attention."""
        return Mamba2Spec(
            d_model=self.d_model,
            expand=self.mamba_expand,
            d_state=self.mamba_d_state,
            head_dim=self.mamba_head_dim,
            n_groups=self.mamba_n_groups,
            conv_size=self.mamba_conv_size,
            norm_eps=self.mamba_norm_eps,
            kernel=self.kernel,
        )

    @property
    def branches(self) -> tuple[MixerSpec, ...]:
        """Both."""
        return self.attention, self.mamba2

    def num_parameters(self) -> int:
        return sum(branch.num_parameters() for branch in self.branches)

    def state_size(self, seq_len: int) -> int:
        return sum(branch.state_size(seq_len) for branch in self.branches)

    def mixing_state_size(self, seq_len: int) -> int:
        return sum(branch.mixing_state_size(seq_len) for branch in self.branches)

    def flops_per_token(self, seq_len: int) -> int:
        return sum(branch.flops_per_token(seq_len) for branch in self.branches)


class BesideMamba2(Mixer):
    """Stands before a class of attention and adds Mamba-2 to what that gives.

    The state is that of the attention, and Mamba-2's with `mamba2.` before its names.
    """

    spec: BesideMamba2Spec
    mamba2: Mixer

    def mix(
        self,
        x: Tensor,
        state: State | None,
        padding_mask: Tensor | None,
        positions: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, State | None]:
        attended, summed = (None, None) if state is None else _branches(state)
        y, attended = super().mix(  # type: ignore[safe-super]  # the attention's
            x, attended, padding_mask, positions, wants_state
        )
        beside, summed = self.mamba2.mix(x, summed, padding_mask, positions, wants_state)
        if attended is None or summed is None:
            return y + beside, None
        return y + beside, attended | {_BESIDE + name: kept for name, kept in summed.items()}


def _branches(state: State) -> tuple[State, State]:
    """What attention remembers, and what Mamba-2 does."""
    summed = {k.removeprefix(_BESIDE): v for k, v in state.items() if k.startswith(_BESIDE)}
    return {k: v for k, v in state.items() if not k.startswith(_BESIDE)}, summed


def only(kind: type[_Spec], spec: MixerSpec) -> _Spec:
    """The part of a specification that one of its base classes has."""
    return kind(**{field.name: getattr(spec, field.name) for field in dataclasses.fields(kind)})


@dataclass(frozen=True, kw_only=True)
class AttentionMamba2Spec(BesideMamba2Spec, AttentionSpec):
    """Settings of both: attention's by their names, Mamba-2's behind `mamba_`."""

    @property
    def attention(self) -> AttentionSpec:
        """The branch beside Mamba-2."""
        return only(AttentionSpec, self)

    def build(self, generator: torch.Generator | None = None) -> AttentionMamba2:
        return AttentionMamba2(self, generator)


class AttentionMamba2(BesideMamba2, Attention):
    """The token mixer."""

    spec: AttentionMamba2Spec

    def __init__(self, spec: AttentionMamba2Spec, generator: torch.Generator | None = None) -> None:
        Attention.__init__(self, spec, generator)
        self.mamba2 = spec.mamba2.build(generator)
