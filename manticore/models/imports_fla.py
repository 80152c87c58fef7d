"""Configurations and folders of flash-linear-attention (fla) as models of ours.

A config.json of fla gives the layers of a `MixerLMConfig`: each of its blocks is a token mixer and
a channel mixer, each with a residual line and a norm of its own, as ours are. Layers that its
`attn` section names are attention. Where weights go is in `weights_fla`; `exports_fla` is the way
back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from manticore.models.configuration_mixer_lm import MixerLMConfig
from manticore.models.fla_rules import ABSENT, RULES
from manticore.models.fla_settings import CHANNELS, DEFAULTS, LIBRARY
from manticore.models.foreign_layers import Settings, check_value, find_rule
from manticore.models.loading import special_floats
from manticore.models.modeling_mixer_lm import MixerForCausalLM
from manticore.models.stock import SPECIAL_TOKENS
from manticore.models.weight_files import read_tensors
from manticore.models.weights_fla import tensors_from_fla

_HARMLESS = (
    "attn_mode", "fuse_norm", "fuse_swiglu", "fuse_cross_entropy", "fuse_linear_cross_entropy",
    "use_l2warp", "use_cache", "max_position_embeddings", "initializer_range", "pad_token_id",
    "bos_token_id", "eos_token_id", "architectures", "torch_dtype", "dtype",
    "transformers_version", "_name_or_path", "rescale_prenorm_residual", "residual_in_fp32",
    "elementwise_affine", "chunk_size",
)  # fmt: skip
"""Keys that name a kernel, a way to start, a token or a version."""
_MODEL = (
    "model_type", "hidden_size", "num_hidden_layers", "vocab_size", "tie_word_embeddings",
    "attn", "attnres_block_size",
)  # fmt: skip
_CHANNEL = ("hidden_ratio", "intermediate_size", "hidden_act")


def config_from_fla(config: Mapping[str, Any], **overrides: Any) -> MixerLMConfig:
    """A model of ours with the layers of a configuration of fla.

    Args:
        config: the content of a config.json, with its `model_type`.
        overrides: settings of `MixerLMConfig` but for its width, such as `vocab_size=16`.
    """
    shared = {
        "layers": layers_from_fla(config),
        "d_model": int(config.get("hidden_size", 2048)),
        "vocab_size": int(config.get("vocab_size", 32000)),
        "norm": "layer" if config.get("model_type") == "rwkv6" else "rms",
        "norm_eps": float(config.get("norm_eps", _default(config, "norm_eps", 1e-6))),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "head_bias": False,
        "initializer_range": float(config.get("initializer_range", 0.02)),
        **{name: config[name] for name in SPECIAL_TOKENS if name in config},
    }
    return MixerLMConfig(**{**shared, **overrides})


def read_fla_config(path: str | os.PathLike[str], **overrides: Any) -> MixerLMConfig:
    """The model of a config.json of fla."""
    text = Path(path).read_text(encoding="utf-8")
    return config_from_fla(json.loads(text, object_hook=special_floats), **overrides)


def is_fla_config(config: Any) -> bool:
    """Whether the content of a config.json is fla's and of no class of transformers.

    Both have a `mamba` and a `mamba2`; fla's name their norm's epsilon as all of fla's do.
    """
    name = str(config.get("model_type")) if isinstance(config, dict) else ""
    return name in RULES and (name not in CONFIG_MAPPING_NAMES or "norm_eps" in config)


def is_fla_folder(folder: Path) -> bool:
    """Whether a folder with a config.json holds a model of fla."""
    return is_fla_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def read_fla_model(folder: str | os.PathLike[str], **overrides: Any) -> MixerForCausalLM:
    """The model in a folder of fla, with its weights in their own dtypes, in eval mode.

    Args:
        folder: with fla's config.json and safetensors weights.
        overrides: settings of `MixerLMConfig` that change no size.

    Raises:
        ValueError: a model, a setting or a tensor that we have no counterpart for.
    """
    folder = Path(folder)
    config = read_fla_config(folder / "config.json", **overrides)
    # The first weights are drawn and thrown away.
    model = MixerForCausalLM.from_generator(config, torch.Generator().manual_seed(0))
    tensors = tensors_from_fla(read_tensors(folder), model.state_dict(), config)
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def layers_from_fla(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The layers of a configuration of fla, token and channel mixers in turn.

    Raises:
        ValueError: a model or a setting that we have no counterpart for.
    """
    name = str(config.get("model_type"))
    rule = find_rule(RULES, name, LIBRARY, ABSENT)
    check_value(LIBRARY, "attnres_block_size", config.get("attnres_block_size"), None)
    ignored = {*_HARMLESS, *_MODEL, *(_CHANNEL if name in CHANNELS else ())}
    own = {key: value for key, value in config.items() if key not in ignored}
    # What a rule derives, it may derive from the model's width, too.
    width = int(config.get("hidden_size", 2048))
    token = rule.apply({**DEFAULTS[name], **own, "_width": width}, f"{LIBRARY}'s {name}")
    channel = CHANNELS[name](config, width) if name in CHANNELS else None
    layers = []
    attention = _attention_layers(config.get("attn"), width)
    depth = config.get("num_hidden_layers", 48 if name in ("mamba", "mamba2") else 24)
    for index in range(int(depth)):
        layers.append(attention.get(index) or dict(token))
        if channel is not None:
            layers.append(dict(channel))
    return layers


def _default(config: Mapping[str, Any], key: str, otherwise: Any) -> Any:
    return DEFAULTS.get(str(config.get("model_type")), {}).get(key, otherwise)


def _attention_layers(sections: Any, width: int) -> dict[int, dict[str, Any]]:
    """Index of a block -> its attention, by an `attn` section or a list of them."""
    listed = [sections] if isinstance(sections, Mapping) else sections or []
    return {
        int(index): _attention_layer(section, width)
        for section in listed
        for index in section.get("layers", ())
    }


def _attention_layer(settings: Settings, width: int) -> dict[str, Any]:
    own = {key: value for key, value in settings.items() if key != "layers"}
    return RULES["transformer"].apply({**own, "_width": width}, f"{LIBRARY}'s attn section")
