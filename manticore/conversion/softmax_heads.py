"""The source's own attention, kept: the same projections, norms, angles and softmax.

It is what stays in the layers of a hybrid, and the teacher that other mixers are compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from manticore.conversion.heads import Heads, HeadsSpec
from manticore.mixers.attention import Attention, _last_keys, _real_keys
from manticore.mixers.interface import State
from manticore.mixers.positions import count_positions, seen_after


@dataclass(frozen=True, kw_only=True)
class SoftmaxHeadsSpec(HeadsSpec):
    """Softmax attention over everything or over a window."""

    window: int | None = None
    """How many positions one sees, itself included; None: all before it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window} must be 1 (itself) or more; None for all.")

    def build(self, generator: torch.Generator | None = None) -> SoftmaxHeads:
        return SoftmaxHeads(self, generator)

    def state_size(self, seq_len: int) -> int:
        kept = seq_len if self.window is None else min(seq_len, self.window - 1)
        return kept * 2 * self.key_width

    def flops_per_token(self, seq_len: int) -> int:
        full = seq_len if self.window is None else min(seq_len, self.window)
        pairs = full * (full + 1) // 2 + (seq_len - full) * full
        return 2 * self._matrices + 4 * self.query_width * pairs // seq_len


class SoftmaxHeads(Heads):
    """The token mixer; its state is that of `manticore.mixers.attention`."""

    spec: SoftmaxHeadsSpec

    def mix(
        self,
        x: Tensor,
        state: State | None,
        padding_mask: Tensor | None,
        positions: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, State | None]:
        spec = self.spec
        seen = None if state is None else state["seen"]
        if positions is None:
            positions = count_positions(x, seen, padding_mask)
        q, k, v = self.project(x, positions, None)
        # The kernel divides by the root of the head's size; fold in what the source does instead.
        q = q * (spec.scale * spec.head_dim**0.5)
        real = _real_keys(state, padding_mask, k)
        if state is not None:
            k, v = (torch.cat([state[name], now], dim=2) for name, now in (("k", k), ("v", v)))
        y = Attention._attend(self, q, k, v, real)  # type: ignore[arg-type] # reads the window only
        y = self.output(y.transpose(1, 2).flatten(2))
        if not wants_state:
            return y, None
        kept = _last_keys(k, v, real, spec.window)
        return y, {**kept, "seen": seen_after(x, seen, padding_mask)}
