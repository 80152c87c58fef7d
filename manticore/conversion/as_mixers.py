"""Converted models as models built from mixers alone, where these compute the same.

A block of the one is two layers of the other, token mixer and gated MLP. What heads carry and a
mixer lacks is folded into the weights: their own scale of scores, the gain of each channel, key
heads that several queries share. Without those, weights stay bit by bit.
`manticore.models.exports_fla` takes it from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from manticore.conversion.block_spec import BlockSpec
from manticore.conversion.configuration_converted import ConvertedConfig
from manticore.conversion.decayed_heads import GLAHeadsSpec, RetentionHeadsSpec, first_log_decays
from manticore.conversion.heads import HeadsSpec
from manticore.conversion.mixer_choice import own_settings
from manticore.conversion.modeling_converted import ConvertedForCausalLM
from manticore.conversion.recurrent_heads import RecurrentHeadsSpec
from manticore.conversion.softmax_heads import SoftmaxHeadsSpec
from manticore.conversion.stock_rotary import rope_parameters
from manticore.mixers.retention import log_decays
from manticore.models.configuration_mixer_lm import MixerLMConfig
from manticore.models.modeling_mixer_lm import MixerForCausalLM
from manticore.models.stock import SPECIAL_TOKENS

Layer = dict[str, Any]
Tensors = dict[str, Tensor]
_BLOCKS: dict[str, tuple[Any, ...]] = {
    "topology": ("sequential",),
    "channel_mixer": ("gated",),
    "activation": ("silu", "swish"),
    "mlp_bias": (False,),
}
"""What blocks have to be, so that they are layers of mixers."""
_DECAYS_AGREE = 1e-5


def as_mixer_model(model: ConvertedForCausalLM) -> MixerForCausalLM:
    """The same function as a model of token mixers and `swiglu` in turn, in eval mode.

    Raises:
        ValueError: a block or a layer is no mixer of ours; the message names the setting.
    """
    config, block, state = model.config, model.config.block_spec, model.state_dict()
    for index, around in enumerate(config.layer_blocks()):
        _check_block(around, index)
    layers: list[Layer] = []
    found = {name: value for name, value in state.items() if ".layers." not in name}
    for index in range(block.n_layers):
        mine = _below(state, f"model.layers.{index}.")
        token, tensors = _token_mixer(config, index, _below(mine, "mixer."))
        layers += [token, {"mixer": "swiglu", "inner_width": block.intermediate_size}]
        found |= _named(2 * index, mine["mixer_norm.weight"], tensors)
        found |= _named(2 * index + 1, mine["mlp_norm.weight"], _below(mine, "mlp."))
        if block.norm == "layer":
            for place, name in ((2 * index, "mixer_norm"), (2 * index + 1, "mlp_norm")):
                found[f"model.layers.{place}.norm.bias"] = mine[f"{name}.bias"]
    mixers = MixerForCausalLM.from_generator(
        _mixer_config(config, layers), torch.Generator().manual_seed(0)
    )
    mixers.load_state_dict(found, assign=True)
    mixers.tie_weights()
    mixers.generation_config = model.generation_config
    return mixers.eval()


def _check_block(block: BlockSpec, index: int) -> None:
    for name, allowed in _BLOCKS.items():
        if getattr(block, name) not in allowed:
            raise ValueError(
                f"Block {index} has {name}={getattr(block, name)!r}, and layers of mixers are "
                f"blocks with {' or '.join(map(repr, allowed))}."
            )


def _mixer_config(config: ConvertedConfig, layers: list[Layer]) -> MixerLMConfig:
    block = config.block_spec
    special: dict[str, Any] = {name: getattr(config, name, None) for name in SPECIAL_TOKENS}
    return MixerLMConfig(
        layers=layers,
        d_model=block.hidden_size,
        vocab_size=config.vocab_size,
        norm=block.norm,
        norm_eps=block.norm_eps,
        positions=config.positions,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=block.tied,
        head_bias=block.head_bias,
        initializer_range=config.initializer_range,
        **special,
    )


def _below(state: Mapping[str, Tensor], prefix: str) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _named(index: int, norm: Tensor, mixer: Tensors) -> Tensors:
    stem = f"model.layers.{index}"
    return {f"{stem}.norm.weight": norm, **{f"{stem}.mixer.{k}": v for k, v in mixer.items()}}


def _token_mixer(config: ConvertedConfig, index: int, state: Tensors) -> tuple[Layer, Tensors]:
    """One layer's mixer, and its tensors."""
    layer, spec, block = config.layers[index], config.specs()[index], config.block_spec
    if not isinstance(spec, HeadsSpec):
        return own_settings(layer), state  # a mixer as it stands; its place was looked at
    where = f"Layer {index} ({layer['mixer']})"
    if type(spec) not in _HEADS:
        raise ValueError(
            f"{where} is no mixer by itself: the heads that are one are attention, retention and "
            "gated-linear-attention. Convert the others with projections: own."
        )
    if spec.qk_norm != "none":
        raise ValueError(f"{where} has qk_norm={spec.qk_norm!r}, which no mixer has.")
    return _HEADS[type(spec)](spec, block, state, where)


def _softmax(spec: Any, block: BlockSpec, state: Tensors, where: str) -> tuple[Layer, Tensors]:
    settings = {
        "mixer": "mh-attention",
        "n_heads": spec.n_heads,
        "n_kv_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "window": spec.window,
        "qkv_bias": spec.qkv_bias,
        "output_bias": spec.output_bias,
        **_rotation(spec, block, where),
    }
    factor = _score_factor(spec, where)
    return settings, {k: _times(v, factor) if k.startswith("q.") else v for k, v in state.items()}


def _retention(spec: Any, block: BlockSpec, state: Tensors, where: str) -> tuple[Layer, Tensors]:
    if spec.query_width != spec.d_model:
        raise ValueError(
            f"{where} has {spec.n_heads} heads of {spec.head_dim} channels, and the mixer's heads "
            f"have {spec.d_model} channels together."
        )
    theirs = log_decays(spec.n_heads, torch.float32)
    if not torch.allclose(first_log_decays(spec), theirs, rtol=_DECAYS_AGREE, atol=0):
        raise ValueError(
            f"{where} has the decays of shortest_memory={spec.shortest_memory:g} and "
            f"longest_memory={spec.longest_memory:g}; retention's own are those of 32 and "
            f"{32 * 2 ** (spec.n_heads - 1)}. Convert with these."
        )
    settings = {"mixer": "retention", "output_norm": "rms", **_rotation(spec, block, where)}
    return settings | _shared(spec), _recurrent(spec, state, where)


def _gla(spec: Any, block: BlockSpec, state: Tensors, where: str) -> tuple[Layer, Tensors]:
    if spec.frequencies:
        raise ValueError(
            f"{where} rotates queries and keys, and the mixer does not. Convert with rotary: false."
        )
    share = spec.query_width / spec.d_model
    settings = {
        "mixer": "gated-linear-attention",
        "expand_key": share,
        "expand_value": share,
        "gate_rank": spec.gate_rank,
        "gate_normalizer": spec.gate_normalizer,
    }
    return settings | _shared(spec), _recurrent(spec, state, where)


_HEADS: dict[type[HeadsSpec], Callable[..., tuple[Layer, Tensors]]] = {
    SoftmaxHeadsSpec: _softmax,
    RetentionHeadsSpec: _retention,
    GLAHeadsSpec: _gla,
}


def _shared(spec: RecurrentHeadsSpec) -> Layer:
    return {"n_heads": spec.n_heads, "use_gate": spec.use_gate, "norm_eps": spec.norm_eps}


def _recurrent(spec: Any, state: Tensors, where: str) -> Tensors:
    """Tensors of heads with a norm, as those of a mixer without gains and biases."""
    left = dict(state)
    for name in ("q.bias", "k.bias", "v.bias", "output.bias", "gate.bias"):
        bias = left.pop(name, None)
        if bias is not None and bool(bias.any()):
            hint = " Convert with use_gate: false." if name == "gate.bias" else ""
            raise ValueError(f"{where} has a {name} that is not zero; the mixer has none.{hint}")
    left["q.weight"] = _times(left["q.weight"], _score_factor(spec, where))
    for name in ("k.weight", "v.weight"):
        left[name] = _for_each_query(left[name], spec)
    gain = left.pop("gain")
    # One weight for all heads is not enough for a gain of each, so the output takes it.
    left["output.weight"] = left["output.weight"] * gain
    left["norm.weight"] = torch.ones_like(gain[: spec.head_dim])
    return left


def _for_each_query(rows: Tensor, spec: HeadsSpec) -> Tensor:
    groups = spec.n_heads // spec.n_kv_heads
    if groups == 1:
        return rows
    return rows.unflatten(0, (-1, spec.head_dim)).repeat_interleave(groups, dim=0).flatten(0, 1)


def _score_factor(spec: HeadsSpec, where: str) -> float:
    """What queries are multiplied by, for a mixer that divides by the root of the head's size."""
    factor = spec.scale * math.sqrt(spec.head_dim)
    if spec.amplitude != 1 and spec.frequencies:
        if 2 * len(spec.frequencies) != spec.head_dim:
            raise ValueError(f"{where} scales its rotated channels alone (YaRN); no mixer does.")
        factor *= spec.amplitude**2
    return 1.0 if math.isclose(factor, 1.0, rel_tol=1e-12) else factor


def _rotation(spec: HeadsSpec, block: BlockSpec, where: str) -> Layer:
    if not spec.frequencies:
        return {"rotary_fraction": 0.0}
    rope = rope_parameters(block)
    if rope is None or rope["rope_type"] != "default":
        kind = "of no known rule" if rope is None else f"of the rule {rope['rope_type']!r}"
        raise ValueError(f"{where} has rotary angles {kind}; mixers have plain ones of one base.")
    share = 2 * len(spec.frequencies) / spec.head_dim
    return {"rotary_fraction": share, "rotary_base": float(rope["rope_theta"])}


def _times(tensor: Tensor, factor: float) -> Tensor:
    return tensor if factor == 1 else tensor * factor
