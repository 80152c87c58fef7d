"""What a converted model is made of, as the few facts in which classes of transformers differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from manticore.conversion.block_spec import BlockSpec
from manticore.conversion.configuration_converted import ConvertedConfig
from manticore.conversion.mixer_choice import keeps_projections, layer_spec
from manticore.conversion.softmax_heads import SoftmaxHeadsSpec
from manticore.conversion.stock_rotary import rope_parameters
from manticore.mixers.attention_mamba2 import only
from manticore.mixers.gated_conv import GatedConvSpec
from manticore.mixers.gated_deltanet import GatedDeltaNetSpec
from manticore.mixers.interface import MixerSpec
from manticore.mixers.mamba2 import Mamba2Spec
from manticore.mixers.normed_mamba import NormedMambaSpec
from manticore.models.stock_parts import what_matters

USUAL = "head_dim ** -0.5"
"""How most classes scale scores."""
ON_SOURCE = " on the source's projections"
"""Behind the name of a mixer that is not attention and keeps the source's projections."""
ATTENDING = ("attention", "attention-mamba2")
"""Mixers with the source's attention in them, by their plain names."""
ALIKE = "alike everywhere"
"""Of a mixer whose settings are the same in all layers, and the usual ones."""

BLOCKS_EPS = "with norm_eps of the blocks"
"""Of a norm in a mixer."""


def facts(config: ConvertedConfig) -> dict[str, str]:
    """Fact -> what it is here, in the order in which differences are named."""
    block, specs = seen_block(config), branches(config)
    rotated = 2 * len(block.rotary_frequencies)
    has_bias = {"queries, keys, values": block.qkv_bias, "output": block.output_bias}
    return {
        "token mixers": " and ".join(mixer_names(config)),
        "kept attention": _kept(config),
        "windows": _windows(specs),
        "Mamba": _alike(
            NormedMambaSpec, specs, lambda spec: _beside(spec.norm_eps, block) or ALIKE
        ),
        "Mamba-2": _alike(Mamba2Spec, specs, lambda spec: _mamba2(spec, block)),
        "gated convolution": _alike(GatedConvSpec, specs, lambda spec: ALIKE),
        "gated DeltaNet": _alike(GatedDeltaNetSpec, specs, _delta),
        "norm in gated DeltaNet": _alike(
            GatedDeltaNetSpec, specs, lambda spec: _beside(spec.norm_eps, block) or BLOCKS_EPS
        ),
        "norm_eps of gated DeltaNet": _alike(
            GatedDeltaNetSpec, specs, lambda spec: f"{spec.norm_eps:g}"
        ),
        "attention layers": "in even steps" if even_steps(config) else "in no even steps",
        "residual lines": _residual_lines(config),
        "norms": block.norm,
        "norm of queries and keys": block.qk_norm,
        "channel mixer": block.channel_mixer,
        "activation": block.activation,
        "biases of attention": " and ".join(n for n, has in has_bias.items() if has) or "none",
        "biases of the channel mixer": _yes(block.mlp_bias),
        "bias of the head": _yes(block.head_bias),
        "key heads": "one for each" if block.n_kv_heads == block.n_heads else "shared",
        "width of heads": (
            "d_model / n_heads" if block.n_heads * block.head_dim == block.hidden_size else "other"
        ),
        "table of positions": _yes(block.learned_positions is not None),
        "rotated channels": {0: "none", block.head_dim: "all"}.get(rotated, "some"),
        "rotary angles": _angles(block),
        "scale of scores": _scale(block),
    }


def seen_block(config: ConvertedConfig) -> BlockSpec:
    """The blocks with the angles that attention uses: none where all layers say `rotary: false`."""
    block = config.block_spec
    attention = [spec for spec in config.specs() if isinstance(spec, SoftmaxHeadsSpec)]
    if attention and not any(spec.frequencies for spec in attention):
        return dataclasses.replace(block, rotary_frequencies=())
    return block


def branches(config: ConvertedConfig) -> list[MixerSpec]:
    """All token mixers, layer by layer; a sum is listed as what it adds."""
    return [branch for spec in config.specs() for branch in spec.branches]


def mixer_names(config: ConvertedConfig) -> list[str]:
    """The token mixers, each once."""
    return sorted({_mixer_name(layer) for layer in config.layers})


def windows_of(config: ConvertedConfig) -> list[int | None]:
    """The window of every attention layer; None: all positions before it."""
    return [spec.window for spec in config.specs() if isinstance(spec, SoftmaxHeadsSpec)]


def even_steps(config: ConvertedConfig) -> tuple[int, int] | None:
    """(period, offset) where the layers with index % period == offset are those with attention."""
    where = [i for i, spec in enumerate(config.specs()) if isinstance(spec, SoftmaxHeadsSpec)]
    n_layers = len(config.layers)
    for period in range(1, n_layers + 1):
        for offset in range(period):
            if where == list(range(offset, n_layers, period)):
                return period, offset
    return None


def _angles(block: BlockSpec) -> str:
    if not block.rotary_frequencies:
        return "none"
    rope = rope_parameters(block)
    if rope is None:
        return "of no rule that could be found"
    is_plain = rope["rope_type"] == "default" and rope["rope_theta"] == 10000.0
    return "default, base 10000" if is_plain else str(rope["rope_type"])


def _scale(block: BlockSpec) -> str:
    usual = block.head_dim**-0.5
    layers = range(1, block.n_layers + 1)
    known = {
        USUAL: (usual,) * block.n_layers,
        "1": (1.0,) * block.n_layers,
        f"{USUAL} / layer": tuple(usual / layer for layer in layers),
        "1 / layer": tuple(1.0 / layer for layer in layers),
    }
    found = next((name for name, scales in known.items() if scales == block.score_scales), None)
    return found or ("one factor" if len(set(block.score_scales)) == 1 else "of each layer")


def _mixer_name(layer: dict[str, Any]) -> str:
    """A plain name is that of attention as in the source, or of another mixer as published."""
    name = "attention" if layer["mixer"] == "sliding-attention" else str(layer["mixer"])
    keeps = keeps_projections(layer)
    if keeps == (name in ATTENDING):
        return name
    return name + (ON_SOURCE if keeps else " on projections of its own")


def _kept(config: ConvertedConfig) -> str:
    block = seen_block(config)
    for index, spec in enumerate(config.specs()):
        source = layer_spec("attention", block, index)
        assert isinstance(source, SoftmaxHeadsSpec)
        if isinstance(spec, SoftmaxHeadsSpec) and only(
            SoftmaxHeadsSpec, spec
        ) != dataclasses.replace(source, window=spec.window):
            return f"with other heads or angles in layer {index}"
    return "as in the source"


def _windows(specs: list[Any]) -> str:
    windows = [spec.window for spec in specs if isinstance(spec, SoftmaxHeadsSpec)]
    sizes = {window for window in windows if window is not None}
    if not sizes:
        return "none"
    if len(sizes) > 1:
        return "of several sizes"
    return "one size, in some layers" if None in windows else "one size, everywhere"


def _residual_lines(config: ConvertedConfig) -> str:
    around: dict[bool, set[str]] = {True: set(), False: set()}  # attention or not -> topologies
    for block, spec in zip(config.layer_blocks(), config.specs(), strict=True):
        around[isinstance(spec, SoftmaxHeadsSpec)].add(block.topology)
    found = around[True] | around[False]
    if len(found) == 1:
        return found.pop() + (", one norm" if config.block_spec.shared_norm else "")
    if len(around[True]) == len(around[False]) == 1:
        return f"{around[True].pop()} around attention, {around[False].pop()} around the rest"
    return "of several kinds"


def _alike(kind: type[MixerSpec], specs: list[MixerSpec], describe: Callable[[Any], str]) -> str:
    """What all mixers of a kind are."""
    found = {what_matters(spec) for spec in specs if isinstance(spec, kind)}
    if len(found) == 1:
        return describe(found.pop())
    return "with settings that differ between layers" if found else "none"


def _mamba2(spec: Mamba2Spec, block: BlockSpec) -> str:
    in_groups = ALIKE if spec.n_groups == 1 else "with a norm for each group"
    return _beside(spec.norm_eps, block) or in_groups


def _beside(eps: float, block: BlockSpec) -> str | None:
    if eps == block.norm_eps:
        return None
    return f"with norm_eps {eps:g} beside {block.norm_eps:g} of the blocks"


def _delta(spec: GatedDeltaNetSpec) -> str:
    published = {"qk_activation": "silu", "qk_norm": "l2", "use_beta": True, "use_gate": True}
    for name, value in published.items():
        if getattr(spec, name) != value:
            return f"with {name}={getattr(spec, name)!r}"
    if spec.conv_size < 2:
        return f"with conv_size={spec.conv_size}"
    return "with negative eigenvalues" if spec.allow_neg_eigval else ALIKE


def _yes(is_there: bool) -> str:
    return "yes" if is_there else "none"
