"""Linear attention behind the source's projections: features of q and k, and a running sum.

    S_t = S_{t-1} + phi(k_t) v_t^T      z_t = z_{t-1} + phi(k_t)
    y_t = S_t^T phi(q_t) / z_t phi(q_t)

Hedgehog's features (Zhang et al., 2024, arXiv:2402.04347) start as softmax of the queries and keys
that the source made. Averages of values as in softmax, so no norm has to replace their size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from manticore.conversion.heads import Heads, HeadsSpec
from manticore.mixers.decayed_scan import decayed_scan
from manticore.mixers.feature_maps import FeatureMap, map_flops, num_features, num_map_parameters
from manticore.mixers.interface import State
from manticore.mixers.positions import count_positions, seen_after
from manticore.mixers.precision import widen
from manticore.mixers.token_shift import zero_padding

POSITIVE_MAPS = ("hedgehog", "elu", "relu", "softmax", "taylor")


@dataclass(frozen=True, kw_only=True)
class LinearHeadsSpec(HeadsSpec):
    """Linear attention with features that are positive, or positive for the product."""

    feature_map: Literal["hedgehog", "elu", "relu", "softmax", "taylor"] = "hedgehog"
    """What queries and keys pass after their rotation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feature_map not in POSITIVE_MAPS:
            raise ValueError(
                f"feature_map={self.feature_map!r} must be one of {', '.join(POSITIVE_MAPS)}."
            )

    def build(self, generator: torch.Generator | None = None) -> LinearHeads:
        return LinearHeads(self, generator)

    def num_parameters(self) -> int:
        return super().num_parameters() + 2 * num_map_parameters(self.feature_map, self.head_dim)

    def state_size(self, seq_len: int) -> int:
        features = num_features(self.feature_map, self.head_dim)
        return self.n_heads * features * (self.head_dim + 1)

    def flops_per_token(self, seq_len: int) -> int:
        maps = 2 * self.n_heads * map_flops(self.feature_map, self.head_dim)
        return 2 * self._matrices + maps + 4 * self.state_size(seq_len)


class LinearHeads(Heads):
    """The token mixer; state: `memory` (batch, H, F, K + 1), float32, and `seen` (batch)."""

    spec: LinearHeadsSpec

    def __init__(self, spec: LinearHeadsSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(spec, generator)
        self.q_map = FeatureMap(spec.feature_map, spec.head_dim, generator)
        self.k_map = FeatureMap(spec.feature_map, spec.head_dim, generator)

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
        # After the map: a feature of a zero is not zero.
        features = zero_padding(self.k_map(k).transpose(1, 2), padding_mask).transpose(1, 2)
        v = widen(v)
        k, v = self.repeated(features, torch.cat([v, torch.ones_like(v[..., :1])], dim=-1))
        memory = None if state is None else state["memory"]
        y, memory = decayed_scan(self.q_map(q), k, v, None, memory)
        # Nothing was seen yet where the sum is 0, which is at padding.
        averaged = y[..., :-1] / y[..., -1:].clamp(min=1e-6)
        y = self.output(averaged.transpose(1, 2).flatten(2).to(x.dtype))
        if not wants_state:
            return y, None
        return y, {"memory": memory, "seen": seen_after(x, seen, padding_mask)}
