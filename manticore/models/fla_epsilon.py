"""One epsilon for all norms of a model, as flash-linear-attention has it.

    norm(c y) with the epsilon e is norm(y) with the epsilon e / c^2

and the sums that retention, GLA and RWKV-6 norm are linear in their queries, so that c goes into
the map that makes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from manticore.mixers.gated_linear_attention import GatedLinearAttentionSpec
from manticore.mixers.interface import MixerSpec
from manticore.mixers.retention import RetentionSpec
from manticore.mixers.rwkv6 import RWKV6Spec
from manticore.models.configuration_mixer_lm import MixerLMConfig

_QUERIES: dict[type[MixerSpec], str] = {
    RetentionSpec: "q.weight",
    GatedLinearAttentionSpec: "q.weight",
    RWKV6Spec: "receptance.weight",
}


def with_one_epsilon(config: MixerLMConfig) -> MixerLMConfig:
    """The config whose mixers have the norms' epsilon of the blocks, where weights allow it."""
    plain: dict[str, Any] = config.to_dict()
    plain["layers"] = [
        {**layer, "norm_eps": config.norm_eps} if type(spec) in _QUERIES else layer
        for layer, spec in zip(config.layers, config.specs(), strict=True)
    ]
    return MixerLMConfig.from_dict(plain)


def fold_epsilon(state: Mapping[str, Tensor], config: MixerLMConfig) -> dict[str, Tensor]:
    """The weights of the same model with the config of `with_one_epsilon`."""
    found = dict(state)
    for index, spec in enumerate(config.specs()):
        if type(spec) in _QUERIES and spec.norm_eps != config.norm_eps:  # type: ignore[attr-defined]
            name = f"model.layers.{index}.mixer.{_QUERIES[type(spec)]}"
            found[name] = found[name] * math.sqrt(config.norm_eps / spec.norm_eps)  # type: ignore[attr-defined]
    return found
