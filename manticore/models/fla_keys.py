"""Our layers under the keys of flash-linear-attention (fla): the inverse of `fla_rules`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from manticore.mixers.attention import AttentionSpec
from manticore.mixers.feature_maps import num_features
from manticore.mixers.interface import MixerSpec
from manticore.mixers.rwkv_channel import RWKVChannelSpec
from manticore.mixers.swiglu import SwiGLUSpec
from manticore.models.fla_places import KINDS
from manticore.models.fla_rules import RULES
from manticore.models.fla_settings import FEATURE_MAPS

Keys = dict[str, Any]


def token_keys(spec: MixerSpec) -> Keys:
    """fla's keys for one of our token mixers."""
    kind = KINDS[type(spec)]
    keys = {theirs: getattr(spec, ours) for theirs, ours in RULES[kind].fields.items()}
    return keys | (_OWN[kind](spec) if kind in _OWN else {})


def attention_sections(tokens: list[MixerSpec]) -> Keys | list[Keys] | None:
    """The `attn` section, or one for each of several settings (since fla 0.6); None: no layers."""
    sections: list[Keys] = []
    for index, spec in enumerate(tokens):
        if not isinstance(spec, AttentionSpec):
            continue
        keys = token_keys(spec)
        same = (s for s in sections if {k: v for k, v in s.items() if k != "layers"} == keys)
        section = next(same, None)
        if section is None:
            sections.append({"layers": [index], **keys})
        else:
            section["layers"].append(index)
    return sections[0] if len(sections) == 1 else sections or None


def channel_keys(spec: Any) -> Keys:
    """Keys of the channel mixer; models without one have the activation of their convolution."""
    if isinstance(spec, RWKVChannelSpec):
        own = {"hidden_act": "sqrelu", "norm_first": False, "norm_bias": True}
        return {"hidden_ratio": None, "intermediate_size": spec.inner_width, **own}
    if isinstance(spec, SwiGLUSpec):
        return {"hidden_ratio": None, "intermediate_size": spec.width, "hidden_act": "swish"}
    return {"hidden_act": "silu", "residual_in_fp32": False}


def _attention(spec: Any) -> Keys:
    return {
        "num_kv_heads": spec.kv_heads,
        "qkv_bias": spec.qkv_bias,
        "window_size": spec.window,
        "rope_theta": spec.rotary_base,
    }


def _linear(spec: Any) -> Keys:
    maps = {ours: theirs for theirs, ours in FEATURE_MAPS.items()}
    if spec.feature_map not in maps:
        raise ValueError(
            f"feature_map={spec.feature_map!r} is none of fla's linear_attn, which are "
            f"{', '.join(maps)}."
        )
    return {
        "feature_map": maps[spec.feature_map],
        "norm_eps": spec.norm_eps / num_features(spec.feature_map, spec.head_size),
    }


def _conv(spec: Any) -> Keys:
    return {"use_short_conv": spec.conv_size > 0, "conv_size": spec.conv_size or 4}


def _gated_deltanet(spec: Any) -> Keys:
    head_dim = spec.key_width // spec.n_heads
    return {"head_dim": head_dim, "expand_v": spec.value_width / spec.key_width} | _conv(spec)


def _rwkv6(spec: Any) -> Keys:
    return {"num_heads": spec.n_heads, "expand_k": 1.0, "norm_eps": spec.norm_eps}


def _mamba(spec: Any) -> Keys:
    return {"dt_rank": spec.rank, "intermediate_size": spec.inner_width}


_OWN: dict[str, Callable[[MixerSpec], Keys]] = {
    "transformer": _attention,
    "linear_attn": _linear,
    "delta_net": _conv,
    "gated_deltanet": _gated_deltanet,
    "rwkv6": _rwkv6,
    "mamba": _mamba,
    "mamba2": lambda spec: {"num_heads": spec.n_heads},  # type: ignore[attr-defined]
}
"""Keys that do not stand for one of our settings alone."""
