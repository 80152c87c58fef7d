"""What every mixer of this room is: a specification with its costs, and the module built from it.

A mixer maps (batch, seq, d_model) to (batch, seq, d_model). A token mixer lets positions see
earlier ones; a channel mixer treats each position by itself, or with the one before it.
One module has three forms of the same map: `forward` (a whole sequence), `prefill` (a piece of
one, with the state before and after it) and `step` (one token).
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
"""What a mixer remembers of the past; every tensor has the batch first."""


@dataclass(frozen=True, kw_only=True)
class MixerSpec(ABC):
    """A mixer before any weight exists: its settings, and its costs as formulas.

    Costs are counted for the whole mixer, projections included, and agree with the built module.
    """

    kind: ClassVar[Literal["token", "channel"]] = "token"

    d_model: int = 128
    """Width of what comes in and goes out."""

    @property
    def branches(self) -> tuple[MixerSpec, ...]:
        """The mixers whose sum this one is: most are their own only branch."""
        return (self,)

    @abstractmethod
    def build(self, generator: torch.Generator | None = None) -> Mixer:
        """The module, its weights drawn from `generator`; None: from torch's default generator."""

    @abstractmethod
    def num_parameters(self) -> int:
        """Trainable numbers of the built module."""

    @abstractmethod
    def state_size(self, seq_len: int) -> int:
        """Numbers that one sequence keeps after `seq_len` tokens, convolution tails included."""

    @abstractmethod
    def flops_per_token(self, seq_len: int) -> int:
        """Floating-point operations of the forward pass per token, mean over `seq_len` positions.

        A multiply-add counts two. A causal score is counted once for each pair that is seen.
        """

    def mixing_state_size(self, seq_len: int) -> int:
        """`state_size` without short convolutions and token shifts: what the iso-state rule counts.

        Poli et al., 2024 (arXiv:2403.17844) compare architectures at equal mixing state.
        """
        return self.state_size(seq_len)

    def settings(self) -> dict[str, Any]:
        """The fields as plain data, for configs and records."""
        return dataclasses.asdict(self)


class Mixer(nn.Module, ABC):
    """A built mixer. Subclasses write `mix` and, where one token has a cheaper form, `step`."""

    def __init__(self, spec: MixerSpec) -> None:
        super().__init__()
        self.spec = spec

    @abstractmethod
    def mix(
        self,
        x: Tensor,
        state: State | None,
        padding_mask: Tensor | None,
        positions: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, State | None]:
        """The one code path behind `forward` and `prefill`; arguments as there.

        Returns:
            y: (batch, seq, d_model).
            state: the state after the last position if `wants_state`, else None.
        """

    def forward(
        self, x: Tensor, padding_mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Mix a whole sequence from an empty state.

        Args:
            x: (batch, seq, d_model), any float dtype.
            padding_mask: (batch, seq) bool, True where a token is real. Padding writes nothing
                into any state; outputs at padding are arbitrary but finite.
            positions: (batch, seq) int64 positions for mixers that use them; default: the count
                of real tokens before each one.

        Returns:
            (batch, seq, d_model), same dtype. Position t sees positions up to t.
        """
        return self.mix(x, None, padding_mask, positions, False)[0]

    def prefill(
        self,
        x: Tensor,
        state: State | None = None,
        padding_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Mix a piece of a sequence: like `forward`, from a state and to a state.

        Any split of a sequence into pieces gives the same numbers. The state does not share
        memory with what was given; None stands for the empty state.
        """
        y, state = self.mix(x, state, padding_mask, positions, True)
        assert state is not None
        return y, state

    def step(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Mix one token.

        Args:
            x: (batch, d_model).
            state: what `prefill` or `step` returned; None: the empty state.

        Returns:
            y: (batch, d_model), and the state after it.
        """
        y, state = self.prefill(x.unsqueeze(1), state)
        return y.squeeze(1), state

    def state_size(self, seq_len: int) -> int:
        """As in the specification."""
        return self.spec.state_size(seq_len)

    def flops_per_token(self, seq_len: int) -> int:
        """As in the specification."""
        return self.spec.flops_per_token(seq_len)
