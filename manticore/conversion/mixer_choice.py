"""Which mixers a converted layer can have, and the specification behind a name.

Mixers in the table below keep the source's projections and change the sum between them. Any other
token mixer of `manticore.mixers` is taken as it is, with its own projections, and so is one of
the table where a layer says {"projections": "own"}: gated DeltaNet as published, for example, with
its short convolution. {"topology": ...} gives a layer residual lines that are not the source's.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from manticore.config.errors import did_you_mean
from manticore.conversion.block_spec import TOPOLOGIES, BlockSpec
from manticore.conversion.heads import HeadsSpec
from manticore.mixers.interface import MixerSpec
from manticore.mixers.table import TABLE, check_kinds, mixer_spec

Layer = str | dict[str, Any]

# Name -> (module:class, settings that the name stands for).
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "attention": ("softmax_heads:SoftmaxHeadsSpec", {}),
    "sliding-attention": ("softmax_heads:SoftmaxHeadsSpec", {"window": 64}),
    "attention-mamba2": ("softmax_mamba2_heads:SoftmaxMamba2HeadsSpec", {}),
    "linear-attention": ("linear_heads:LinearHeadsSpec", {}),
    "retention": ("decayed_heads:RetentionHeadsSpec", {}),
    "gated-linear-attention": ("decayed_heads:GLAHeadsSpec", {}),
    "mamba2-heads": ("decayed_heads:Mamba2HeadsSpec", {}),
    "deltanet": ("delta_heads:DeltaHeadsSpec", {}),
    "gated-deltanet": ("delta_heads:GatedDeltaHeadsSpec", {}),
}

# What a layer may say about its heads; the rest of the geometry is always the source's.
_GEOMETRY = ("n_heads", "n_kv_heads", "head_dim")
_PROJECTIONS = ("source", "own")
_FROM_SOURCE = {
    "d_model", "qkv_bias", "output_bias", "qk_norm", "qk_norm_eps", "frequencies", "amplitude",
    "scale",
}  # fmt: skip


def known_mixers() -> list[str]:
    """Names of all token mixers that a converted layer can have."""
    return sorted({*HEADS, *(name for name in TABLE if _is_token_mixer(name))})


def as_layer(layer: Layer) -> dict[str, Any]:
    """A layer as a dictionary whose key "mixer" is its name."""
    if isinstance(layer, str):
        return {"mixer": layer}
    if not isinstance(layer, dict) or not isinstance(layer.get("mixer"), str):
        raise ValueError(
            f"A layer is a mixer's name or a dictionary with one, not {layer!r}. For example "
            '"retention" or {"mixer": "retention", "longest_memory": 64}.'
        )
    return dict(layer)


def layer_spec(layer: Layer, block: BlockSpec, index: int) -> MixerSpec:
    """The specification of the mixer in layer `index` of a model with these blocks.

    Raises:
        ValueError: an unknown mixer or setting, or settings that contradict.
    """
    settings = own_settings(layer)
    name = settings.pop("mixer")
    if keeps_projections(layer):
        return _heads_spec(name, settings, block, index)
    if name not in TABLE or not _is_token_mixer(name):
        known = known_mixers()
        hint = did_you_mean(name, known)
        raise ValueError(f"Unknown mixer {name!r}.{hint} Known: {', '.join(known)}.")
    if "d_model" in settings:
        raise ValueError(f"Layer {name!r} sets d_model, which is the source's. Leave it out.")
    return mixer_spec(name, d_model=block.hidden_size, **settings)


def own_settings(layer: Layer) -> dict[str, Any]:
    """The mixer and its settings, without what a layer says about its place in the model."""
    return {k: v for k, v in as_layer(layer).items() if k not in ("projections", "topology")}


def keeps_projections(layer: Layer) -> bool:
    """Whether the mixer keeps the source's projections, if its geometry is the source's."""
    settings = as_layer(layer)
    wanted = settings.get("projections", "source")
    if wanted not in _PROJECTIONS:
        raise ValueError(
            f"projections={wanted!r} of mixer {settings['mixer']!r} must be 'source' (keep the "
            "source's) or 'own' (the mixer as published)."
        )
    return settings["mixer"] in HEADS and wanted == "source"


def layer_block(layer: Layer, block: BlockSpec) -> BlockSpec:
    """The block around a layer's mixer: the source's, but for a `topology` of its own."""
    settings = as_layer(layer)
    topology = settings.get("topology", block.topology)
    if topology == block.topology:
        return block
    if topology not in TOPOLOGIES or block.shared_norm:
        raise ValueError(
            f"topology={topology!r} of layer {settings['mixer']!r}: a layer can be "
            f"{', '.join(TOPOLOGIES)}, and where mixer and MLP share a norm it stays parallel."
        )
    return dataclasses.replace(block, topology=topology)


def _heads_spec(name: str, settings: dict[str, Any], block: BlockSpec, index: int) -> HeadsSpec:
    place, given = HEADS[name]
    module, _, attribute = place.partition(":")
    spec_class = getattr(importlib.import_module(f"manticore.conversion.{module}"), attribute)
    rotary = settings.pop("rotary", True)
    if not isinstance(rotary, bool):
        raise ValueError(f"rotary={rotary!r} of mixer {name!r} must be true or false.")
    fields = {field.name for field in dataclasses.fields(spec_class)} - _FROM_SOURCE
    for key in settings:
        if key not in fields:
            raise ValueError(
                f"Mixer {name!r} has no setting {key!r}.{did_you_mean(key, fields)} Its settings "
                f"in a converted model: {', '.join(sorted({*fields, 'rotary'}))}."
            )
    check_kinds(name, spec_class, settings)
    values = {**_geometry(block, index, rotary), **given, **settings}
    for setting, sources in (("window", block.windows[index]), ("mamba_norm_eps", block.norm_eps)):
        if setting in fields:
            values.setdefault(setting, sources)
    built: HeadsSpec = spec_class(**values)
    return built


def _geometry(block: BlockSpec, index: int, rotary: bool) -> dict[str, Any]:
    return {
        "d_model": block.hidden_size,
        **{name: getattr(block, name) for name in _GEOMETRY},
        "qkv_bias": block.qkv_bias,
        "output_bias": block.output_bias,
        "qk_norm": block.qk_norm,
        "qk_norm_eps": block.norm_eps,
        "frequencies": block.rotary_frequencies if rotary else (),
        "amplitude": block.rotary_amplitude,
        "scale": block.score_scales[index],
    }


def _is_token_mixer(name: str) -> bool:
    return name not in ("mlp", "swiglu", "moe-mlp") and not name.endswith("-channel")
