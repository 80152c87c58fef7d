"""Models of ours as models of flash-linear-attention (fla): config.json and weights.

The config is written by the rules of `fla_rules` and then read back by them: where what comes back
is not the model that was given, fla's class cannot express it, and the error names the setting.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from manticore.mixers.attention import AttentionSpec
from manticore.mixers.feature_maps import num_features
from manticore.mixers.interface import MixerSpec
from manticore.mixers.swiglu import SwiGLUSpec
from manticore.models.configuration_mixer_lm import MixerLMConfig
from manticore.models.fla_rules import FEATURE_MAPS, RULES
from manticore.models.imports_fla import config_from_fla
from manticore.models.modeling_mixer_lm import MixerForCausalLM
from manticore.models.stock import SPECIAL_TOKENS
from manticore.models.stock_mixers import plain_spec
from manticore.models.weights_fla import KINDS, tensors_to_fla
from manticore.runs import write_json

Keys = dict[str, Any]
CLASSES = {
    "transformer": "TransformerForCausalLM",
    "linear_attn": "LinearAttentionForCausalLM",
    "gla": "GLAForCausalLM",
    "retnet": "RetNetForCausalLM",
    "delta_net": "DeltaNetForCausalLM",
    "gated_deltanet": "GatedDeltaNetForCausalLM",
}
"""fla's class of each model."""
_POSITIONS = 2048
"""fla's own where nothing is said; it limits nothing."""
_CLOSE = 1e-9
"""Widths that were divided and multiplied again."""


def save_as_fla(model: MixerForCausalLM, folder: Path) -> None:
    """Write the folder that `from_pretrained` of fla's class loads.

    Raises:
        ValueError: no class of fla computes this; nothing is written.
    """
    config = fla_config(model.config)
    tensors = tensors_to_fla(model.state_dict(), model.config)
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model.generation_config.save_pretrained(folder)


def fla_config(config: MixerLMConfig) -> Keys:
    """The content of fla's config.json for the same model.

    Raises:
        ValueError: no class of fla computes this; the message names the first difference.
    """
    tokens, channel = _blocks(config)
    kind = _kind(tokens)
    keys: Keys = {
        "model_type": kind,
        "architectures": [CLASSES[kind]],
        "hidden_size": config.hidden_size,
        "num_hidden_layers": len(tokens),
        "vocab_size": config.vocab_size,
        "hidden_ratio": None,
        "intermediate_size": channel.width,
        "hidden_act": "swish",
        "norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "max_position_embeddings": config.max_position_embeddings or _POSITIONS,
        # fla's own are 1 and 2 where a config does not say.
        **{name: getattr(config, name, None) for name in SPECIAL_TOKENS},
    }
    native = next(spec for spec in tokens if KINDS[type(spec)] == kind)
    keys |= _keys(native)
    if kind != "transformer":
        keys["attn"] = _attention_sections(tokens) or None
    difference = next(_differences(config, config_from_fla(keys)), None)
    if difference is not None:
        raise ValueError(f"fla's {CLASSES[kind]} does not compute this: {difference}.")
    return keys


def _blocks(config: MixerLMConfig) -> tuple[list[MixerSpec], SwiGLUSpec]:
    """The token mixers, one for each of fla's blocks, and the channel mixer beside the first."""
    specs, names = config.specs(), [str(layer["mixer"]) for layer in config.layers]
    for index, (spec, name) in enumerate(zip(specs, names, strict=True)):
        fits = isinstance(spec, SwiGLUSpec) if index % 2 else type(spec) in KINDS
        if not fits:
            allowed = "swiglu" if index % 2 else f"one of {', '.join(_known())}"
            raise ValueError(
                f"Layer {index} is {name}, and fla's blocks have {allowed} there: each is a token "
                "mixer and then swiglu."
            )
    if not specs or len(specs) % 2:
        raise ValueError("fla's blocks end with swiglu, and these layers do not.")
    channel = specs[1]
    assert isinstance(channel, SwiGLUSpec)
    return specs[::2], channel


def _known() -> list[str]:
    return sorted({RULES[kind].mixer for kind in KINDS.values()})


def _kind(tokens: list[MixerSpec]) -> str:
    """fla's model: that of the only mixer beside attention."""
    kinds = {KINDS[type(spec)] for spec in tokens}
    native = sorted(kinds - {"transformer"})
    if len(native) > 1:
        raise ValueError(
            f"The layers are of {' and '.join(native)}, and a model of fla has one of them, with "
            "or without attention."
        )
    return native[0] if native else "transformer"


def _keys(spec: MixerSpec) -> Keys:
    """fla's keys for one of our token mixers, the inverse of its rule."""
    kind = KINDS[type(spec)]
    keys = {theirs: getattr(spec, ours) for theirs, ours in RULES[kind].fields.items()}
    return keys | (_OWN[kind](spec) if kind in _OWN else {})


def _attention_sections(tokens: list[MixerSpec]) -> list[Keys]:
    """The `attn` sections, one for all layers of the same settings."""
    sections: list[Keys] = []
    for index, spec in enumerate(tokens):
        if not isinstance(spec, AttentionSpec):
            continue
        keys = _keys(spec)
        same = (s for s in sections if {k: v for k, v in s.items() if k != "layers"} == keys)
        section = next(same, None)
        if section is None:
            sections.append({"layers": [index], **keys})
        else:
            section["layers"].append(index)
    return sections


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


_OWN: dict[str, Callable[[MixerSpec], Keys]] = {
    "transformer": _attention,
    "linear_attn": _linear,
    "delta_net": _conv,
    "gated_deltanet": _gated_deltanet,
}
"""Keys that do not stand for one of our settings alone."""


def _differences(config: MixerLMConfig, back: MixerLMConfig) -> Iterator[str]:
    """Where what fla computes is not what was given, first things first."""
    for name in ("norm", "positions", "head_bias"):
        if getattr(config, name) != getattr(back, name):
            yield f"{name} is {getattr(config, name)!r} here and {getattr(back, name)!r} there"
    for index, (ours, theirs) in enumerate(zip(config.specs(), back.specs(), strict=True)):
        here, there = _resolved(ours), _resolved(theirs)
        for key, value in here.items():
            if type(ours) is not type(theirs) or not _same(value, there[key]):
                yield (
                    f"layer {index} ({config.layers[index]['mixer']}) has {key}={value!r}, and "
                    f"there it is {there.get(key)!r}"
                )
    if not _same(config.norm_eps, back.norm_eps):
        yield f"norm_eps of the blocks is {config.norm_eps:g}, of the mixers {back.norm_eps:g}"


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, int | float):
        return math.isclose(ours, theirs, rel_tol=_CLOSE)
    return bool(ours == theirs)


def _resolved(spec: MixerSpec) -> Keys:
    """Settings as values, where None stands for one that follows from others."""
    found = {f.name: getattr(plain_spec(spec), f.name) for f in dataclasses.fields(spec)}
    if isinstance(spec, AttentionSpec):
        found |= {"n_kv_heads": spec.kv_heads, "head_dim": spec.head_size}
    if isinstance(spec, SwiGLUSpec):
        found["inner_width"] = spec.width
    return found
