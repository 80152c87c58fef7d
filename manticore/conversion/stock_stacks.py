"""Models built from mixers that leave as a class of transformers.

A stack that alternates token mixers and MLPs is made of the blocks that a converted model has,

    h = x + mixer(n1 x)      y = h + mlp(n2 h)

so it leaves as whatever class has such blocks (`stock_layouts`). Any other stack leaves line by
line (`models.stock_mixers`). The MLPs of `mlp` have no biases; classes whose MLPs have some get
zeros.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manticore.conversion.block_spec import BlockSpec
from manticore.conversion.configuration_converted import ConvertedConfig
from manticore.conversion.mixer_choice import HEADS
from manticore.conversion.source_blocks import plain_angles
from manticore.conversion.stock_layouts import blocks_as_stock_model
from manticore.mixers.attention import AttentionSpec
from manticore.mixers.attention_mamba2 import AttentionMamba2Spec, BesideMamba2Spec, only
from manticore.mixers.interface import MixerSpec
from manticore.mixers.mlp import MLPSpec
from manticore.mixers.rotary import rotated_channels
from manticore.mixers.swiglu import SwiGLUSpec
from manticore.models.configuration_mixer_lm import MixerLMConfig
from manticore.models.modeling_mixer_lm import MixerForCausalLM
from manticore.models.stock import SPECIAL_TOKENS, NoStockClassError
from manticore.models.stock_mixers import mixers_as_stock_model

Fields = dict[str, Any]


def stack_as_stock_model(model: MixerForCausalLM) -> PreTrainedModel:
    """The same function as a model of transformers' own class.

    Raises:
        NoStockClassError: no class expresses it; the message names what is in the way.
    """
    specs = model.config.specs()
    if not _alternates(specs):
        return mixers_as_stock_model(model)
    if isinstance(specs[1], SwiGLUSpec):
        return _blocks_as_stock_model(model)
    try:
        return mixers_as_stock_model(model)  # Nemotron-H has such MLPs, too
    except NoStockClassError:
        return _blocks_as_stock_model(model)


def _alternates(specs: list[MixerSpec]) -> bool:
    tokens, channels = specs[::2], specs[1::2]
    return (
        len(tokens) == len(channels) > 0
        and all(spec.kind == "token" for spec in tokens)
        and len({type(spec) for spec in channels}) == 1
        and isinstance(channels[0], SwiGLUSpec | MLPSpec)
    )


def _blocks_as_stock_model(model: MixerForCausalLM) -> PreTrainedModel:
    config = stack_blocks(model.config)
    return blocks_as_stock_model(config, _block_tensors(model, config.block_spec))


def stack_blocks(config: MixerLMConfig) -> ConvertedConfig:
    """The config of a converted model with the blocks that an alternating stack has."""
    specs = config.specs()
    if len(set(specs[1::2])) > 1:
        raise NoStockClassError("No class of transformers has MLPs of several widths.")
    if config.positions == "sinusoidal":
        raise NoStockClassError("No class of transformers known here adds sinusoidal positions.")
    longest = config.max_position_embeddings
    special: Fields = {name: getattr(config, name, None) for name in SPECIAL_TOKENS}
    block = BlockSpec(
        hidden_size=config.hidden_size,
        n_layers=len(specs) // 2,
        vocab_size=config.vocab_size,
        topology="sequential",
        norm=config.norm,  # type: ignore[arg-type]  # the config has checked it
        norm_eps=config.norm_eps,
        learned_positions=longest if config.positions == "learned" else None,
        tied=config.tie_word_embeddings,
        head_bias=config.head_bias,
        **_attention(specs[::2], config.hidden_size),
        **_mlp(specs[1]),
    )
    return ConvertedConfig(
        block=block.to_dict(),
        layers=[
            _layer(layer, spec) for layer, spec in zip(config.layers[::2], specs[::2], strict=True)
        ],
        max_position_embeddings=longest,
        initializer_range=config.initializer_range,
        **special,
    )


def _attention(tokens: list[MixerSpec], d_model: int) -> Fields:
    """What the blocks say about attention, the same in all layers but for windows."""
    found = [only(AttentionSpec, spec) for spec in tokens if isinstance(spec, AttentionSpec)]
    if len({dataclasses.replace(spec, window=None) for spec in found}) > 1:
        raise NoStockClassError("No class of transformers has attention of several settings.")
    spec = found[0] if found else AttentionSpec(d_model=d_model, n_heads=1, rotary_fraction=0.0)
    rotated = rotated_channels(spec.head_size, spec.rotary_fraction)
    return {
        "n_heads": spec.n_heads,
        "n_kv_heads": spec.kv_heads,
        "head_dim": spec.head_size,
        "qkv_bias": spec.qkv_bias,
        "output_bias": spec.output_bias,
        "rotary_frequencies": plain_angles(rotated, spec.rotary_base) if rotated else (),
        "score_scales": (spec.head_size**-0.5,) * len(tokens),
        "windows": (None,) * len(tokens),
    }


def _mlp(spec: MixerSpec) -> Fields:
    if isinstance(spec, SwiGLUSpec):
        return {
            "channel_mixer": "gated",
            "intermediate_size": spec.width,
            "activation": "silu",
            "mlp_bias": False,
        }
    assert isinstance(spec, MLPSpec)
    return {
        "channel_mixer": "mlp",
        "intermediate_size": spec.inner_width,
        "activation": "gelu_pytorch_tanh",
        "mlp_bias": True,
    }


def _layer(layer: dict[str, Any], spec: MixerSpec) -> dict[str, Any]:
    if isinstance(spec, AttentionMamba2Spec):
        beside = {f.name: getattr(spec, f.name) for f in dataclasses.fields(BesideMamba2Spec)}
        del beside["d_model"]  # the blocks say it
        return {"mixer": "attention-mamba2", "window": spec.window, **beside}
    if isinstance(spec, AttentionSpec):
        window = {"mixer": "sliding-attention", "window": spec.window}
        return {"mixer": "attention"} if spec.window is None else window
    return {**layer, "projections": "own"} if layer["mixer"] in HEADS else dict(layer)


def _block_tensors(model: MixerForCausalLM, block: BlockSpec) -> dict[str, Tensor]:
    """The stack's tensors under the names of a converted model."""
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if not name.startswith("model.layers."):
            found[name] = value
            continue
        index, rest = name.removeprefix("model.layers.").split(".", 1)
        norm, mixer = ("mlp_norm.", "mlp.") if int(index) % 2 else ("mixer_norm.", "mixer.")
        place = norm if rest.startswith("norm.") else mixer
        found[f"model.layers.{int(index) // 2}.{place}{rest.partition('.')[2]}"] = value
    if block.channel_mixer == "mlp":
        for index in range(block.n_layers):
            for part in ("up", "down"):
                stem = f"model.layers.{index}.mlp.{part}"
                found[f"{stem}.bias"] = torch.zeros_like(found[f"{stem}.weight"][:, 0])
    return found
