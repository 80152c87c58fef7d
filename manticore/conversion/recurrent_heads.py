"""Heads that read a running sum: their state has one size, their outputs are normed and gated.

    y = W_o (gain norm(S_t^T q_t) silu(W_g x_t + b_g)) + b_o

Sums along time grow with what they have seen, softmax averages do not. The norm takes the size
out, the gain is where a few batches of the source put it back (`calibration`), and the gate starts
at one: a random one would halve and flip the signals that a copied W_o expects.

    B batch, T time, D d_model, H heads, K channels of a head
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manticore.conversion.heads import Heads, HeadsSpec, constant_linear
from manticore.mixers.interface import State
from manticore.mixers.positions import count_positions, seen_after
from manticore.mixers.precision import widen

GATE_OF_ONE = 1.2784645427610738
"""silu of this is 1."""


@dataclass(frozen=True, kw_only=True)
class RecurrentHeadsSpec(HeadsSpec):
    """Heads with a state of keys times values."""

    use_gate: bool = True
    """Whether the output is multiplied by silu of a map of the input; it starts at one."""
    norm_eps: float = 1e-6
    """Added to the mean square in the norm of each head's output."""

    def num_parameters(self) -> int:
        gate = self.use_gate * (self.d_model + 1) * self.query_width
        return super().num_parameters() + gate + self.query_width

    def state_size(self, seq_len: int) -> int:
        return self.n_heads * self.head_dim**2

    def flops_per_token(self, seq_len: int) -> int:
        gate = 2 * self.use_gate * self.d_model * self.query_width
        # Write and read: two operations each per number of the state.
        return 2 * self._matrices + gate + 4 * self.state_size(seq_len)


class RecurrentHeads(Heads):
    """The token mixer; state: `memory` (batch, H, K, K), float32, and `seen` (batch)."""

    spec: RecurrentHeadsSpec

    def __init__(self, spec: RecurrentHeadsSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec, generator)
        self.gain = nn.Parameter(torch.ones(spec.query_width))
        self.gate: nn.Linear | None = None
        if spec.use_gate:
            self.gate = constant_linear(spec.d_model, spec.query_width, GATE_OF_ONE)

    @abstractmethod
    def sum_up(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        x: Tensor,
        memory: Tensor | None,
        padding_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Run the sum along time.

        Args:
            q, k, v: (batch, H, seq, K), projected, rotated; v is zero at padding.
            x: (batch, seq, d_model), what gates and decays are made of.
            memory: (batch, H, K, K), or None: zeros.
            padding_mask: (batch, seq) bool; padding must leave the memory as it is.

        Returns:
            (batch, H, seq, K), and the memory after it.
        """

    def mix(
        self,
        x: Tensor,
        state: State | None,
        padding_mask: Tensor | None,
        positions: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, State | None]:
        seen = None if state is None else state["seen"]
        if positions is None:
            positions = count_positions(x, seen, padding_mask)
        q, k, v = self.project(x, positions, padding_mask)
        k, v = self.repeated(k, v)
        memory = None if state is None else state["memory"]
        y, memory = self.sum_up(q * self.spec.scale, k, v, x, memory, padding_mask)
        y = self._finish(y, x)
        if not wants_state:
            return y, None
        return y, {"memory": memory, "seen": seen_after(x, seen, padding_mask)}

    def _finish(self, y: Tensor, x: Tensor) -> Tensor:
        """(B, H, T, K) to (B, T, D): norm, gain, gate, output."""
        wide = widen(y.transpose(1, 2))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.spec.norm_eps)
        wide = wide.flatten(2) * widen(self.gain)
        if self.gate is not None:
            wide = wide * F.silu(widen(self.gate(x)))
        mixed: Tensor = self.output(wide.to(x.dtype))
        return mixed
