"""What a converted model is made of, as the few facts in which classes of transformers differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from transformers import LlamaConfig

from manticore.conversion.block_spec import BlockSpec
from manticore.conversion.configuration_converted import ConvertedConfig
from manticore.conversion.mixer_choice import layer_spec
from manticore.conversion.softmax_heads import SoftmaxHeadsSpec
from manticore.conversion.source_blocks import rotary_of
from manticore.mixers.mamba2 import Mamba2Spec

USUAL = "head_dim ** -0.5"
"""How most classes scale scores."""
# Llama 3.1's published settings; its factor and base are read off the angles.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_DIGITS = range(1, 10)


def facts(config: ConvertedConfig) -> dict[str, str]:
    """Fact -> what it is here, in the order in which differences are named."""
    block, specs = config.block_spec, config.specs()
    rotated = 2 * len(block.rotary_frequencies)
    has_bias = {"queries, keys, values": block.qkv_bias, "output": block.output_bias}
    return {
        "token mixers": " and ".join(sorted({_mixer_name(layer) for layer in config.layers})),
        "kept attention": _kept(config),
        "windows": _windows(specs),
        "Mamba-2": _mamba(specs, block),
        "residual lines": block.topology + (", one norm" if block.shared_norm else ""),
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


def windows_of(config: ConvertedConfig) -> list[int | None]:
    """The window of every attention layer; None: all positions before it."""
    return [spec.window for spec in config.specs() if isinstance(spec, SoftmaxHeadsSpec)]


def rope_parameters(block: BlockSpec) -> dict[str, Any] | None:
    """The setting of transformers that gives exactly these angles; None: there is none known.

    A converted model keeps the angles themselves, so base and factor are found from them, and a
    candidate counts only when it gives the same float32 numbers.
    """
    wanted = (block.rotary_frequencies, block.rotary_amplitude)
    rotated = 2 * len(block.rotary_frequencies)
    part = {} if rotated == block.head_dim else {"partial_rotary_factor": rotated / block.head_dim}
    for candidate in _candidates(block):
        probe = LlamaConfig(head_dim=block.head_dim, rope_parameters={**candidate, **part})
        if rotary_of(probe, block.head_dim) == wanted:
            return {**candidate, **part}
    return None


def _candidates(block: BlockSpec) -> Iterator[dict[str, Any]]:
    angles, half = block.rotary_frequencies, len(block.rotary_frequencies)
    if half == 0:
        return
    if half == 1:  # one angle of 1 (or 1 / factor), whatever the base
        yield {"rope_type": "default", "rope_theta": 10000.0}
        yield {"rope_type": "linear", "rope_theta": 10000.0, "factor": _short(1 / angles[0], 9)}
        return
    factor = 1 / angles[0]
    last, second = ((index, (angles[index] * factor) ** (-half / index)) for index in (half - 1, 1))
    for digits in _DIGITS:
        yield {"rope_type": "default", "rope_theta": _short(last[1], digits)}
    for digits in _DIGITS:
        linear = {"rope_type": "linear", "factor": _short(factor, 9)}
        yield {**linear, "rope_theta": _short(last[1], digits)}
    for digits in _DIGITS:
        base = _short(second[1], digits)
        stretch = base ** (-(half - 1) / half) / angles[-1]
        yield {
            "rope_type": "llama3", "rope_theta": base, "factor": _short(stretch, 4), **_LLAMA3
        }  # fmt: skip


def _short(number: float, digits: int) -> float:
    return float(f"{number:.{digits}g}")


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
    return "attention" if layer["mixer"] == "sliding-attention" else str(layer["mixer"])


def _kept(config: ConvertedConfig) -> str:
    block = config.block_spec
    for index, spec in enumerate(config.specs()):
        source = layer_spec("attention", block, index)
        assert isinstance(source, SoftmaxHeadsSpec)
        if isinstance(spec, SoftmaxHeadsSpec) and spec != dataclasses.replace(
            source, window=spec.window
        ):
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


def _mamba(specs: list[Any], block: BlockSpec) -> str:
    found = {spec for spec in specs if isinstance(spec, Mamba2Spec)}
    if not found:
        return "none"
    if len(found) > 1:
        return "with settings that differ between layers"
    (spec,) = found
    if spec.norm_eps != block.norm_eps:
        return f"with norm_eps {spec.norm_eps:g} beside {block.norm_eps:g} of the blocks"
    return "alike everywhere" if spec.n_groups == 1 else "with a norm for each group"


def _yes(is_there: bool) -> str:
    return "yes" if is_there else "none"
