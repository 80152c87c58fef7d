"""Models of ours as models of flash-linear-attention (fla): config.json and weights.

The config is written by the rules of `fla_rules` and then read back by them: where what comes back
is not the model that was given, fla's class cannot express it, and the error names the setting.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from manticore.mixers.attention import AttentionSpec
from manticore.mixers.interface import MixerSpec
from manticore.mixers.mamba import MambaSpec
from manticore.mixers.swiglu import SwiGLUSpec
from manticore.models.configuration_mixer_lm import MixerLMConfig, layer_spec
from manticore.models.fla_epsilon import fold_epsilon, with_one_epsilon
from manticore.models.fla_keys import Keys, attention_sections, channel_keys, token_keys
from manticore.models.fla_places import BARE, KINDS
from manticore.models.fla_rules import RULES
from manticore.models.imports_fla import config_from_fla
from manticore.models.modeling_mixer_lm import MixerForCausalLM
from manticore.models.stock import SPECIAL_TOKENS
from manticore.models.stock_parts import what_matters
from manticore.models.weights_fla import tensors_to_fla
from manticore.runs import write_json

CLASSES = {
    "transformer": "TransformerForCausalLM",
    "linear_attn": "LinearAttentionForCausalLM",
    "gla": "GLAForCausalLM",
    "retnet": "RetNetForCausalLM",
    "delta_net": "DeltaNetForCausalLM",
    "gated_deltanet": "GatedDeltaNetForCausalLM",
    "rwkv6": "RWKV6ForCausalLM",
    "mamba": "MambaForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
}
"""fla's class of each model."""
_POSITIONS = 2048
"""fla's own where nothing is said; it limits nothing."""
_OF_FIRST_WEIGHTS = ("layer_index", "n_layers", "output_gain")
_CLOSE = 1e-9
"""Widths that were divided and multiplied again."""


def save_as_fla(model: MixerForCausalLM, folder: Path) -> None:
    """Write the folder that `from_pretrained` of fla's class loads.

    Raises:
        ValueError: no class of fla computes this; nothing is written.
    """
    config = fla_config(model.config)
    tensors = tensors_to_fla(fold_epsilon(model.state_dict(), model.config), model.config)
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
    config = with_one_epsilon(config)
    specs = config.specs()
    kind = _kind(specs)
    tokens = specs if kind in BARE else specs[::2]
    _check_blocks(config, kind)
    keys: Keys = {
        "model_type": kind,
        "architectures": [CLASSES[kind]],
        "hidden_size": config.hidden_size,
        "num_hidden_layers": len(tokens),
        "vocab_size": config.vocab_size,
        **channel_keys(specs[-1]),
        "norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "max_position_embeddings": config.max_position_embeddings or _POSITIONS,
        # fla's own are 1 and 2 where a config does not say.
        **{name: getattr(config, name, None) for name in SPECIAL_TOKENS},
    }
    native = next(spec for spec in tokens if KINDS[type(spec)] == kind)
    keys |= token_keys(native)
    if kind not in ("transformer", *BARE):
        keys["attn"] = attention_sections(tokens)
    difference = next(_differences(config, config_from_fla(keys)), None)
    if difference is not None:
        raise ValueError(f"fla's {CLASSES[kind]} does not compute this: {difference}.")
    return keys


def _kind(specs: list[MixerSpec]) -> str:
    """fla's model: that of the only token mixer beside attention."""
    kinds = {KINDS[type(spec)] for spec in specs if type(spec) in KINDS}
    native = sorted(kinds - {"transformer"})
    if len(native) > 1:
        raise ValueError(
            f"The layers are of {' and '.join(native)}, and a model of fla has one of them, with "
            "or without attention."
        )
    return native[0] if native else "transformer"


def _check_blocks(config: MixerLMConfig, kind: str) -> None:
    """Raise unless the layers are, in turn, what the blocks of fla's model are made of."""
    channel = {"rwkv6": "rwkv6-channel"}.get(kind, "swiglu")
    for index, (spec, layer) in enumerate(zip(config.specs(), config.layers, strict=True)):
        if kind in BARE:
            fits, allowed = KINDS.get(type(spec)) == kind, kind
        elif index % 2:
            fits, allowed = type(spec) is type(layer_spec(channel, config.hidden_size)), channel
        else:
            fits, allowed = type(spec) in KINDS, f"one of {', '.join(_known())}"
        if not fits:
            raise ValueError(
                f"Layer {index} is {layer['mixer']}, and fla's {CLASSES[kind]} has {allowed} there."
            )
    if not config.layers or (kind not in BARE and len(config.layers) % 2):
        raise ValueError(f"The blocks of fla's {CLASSES[kind]} end with {channel}; these do not.")


def _known() -> list[str]:
    return sorted({RULES[kind].mixer for kind in KINDS.values()})


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
    found = {f.name: getattr(what_matters(spec), f.name) for f in dataclasses.fields(spec)}
    found = {name: value for name, value in found.items() if name not in _OF_FIRST_WEIGHTS}
    if isinstance(spec, AttentionSpec):
        found |= {"n_kv_heads": spec.kv_heads, "head_dim": spec.head_size}
    if isinstance(spec, SwiGLUSpec):
        found["inner_width"] = spec.width
    if isinstance(spec, MambaSpec):
        found["dt_rank"] = spec.rank
    return found
