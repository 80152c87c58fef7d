"""The source families: how each one's config and tensors become the canonical blocks.

The canonical names are those of `ConvertedForCausalLM` with its attention kept. A row of the table
says what the blocks are (`block`), and for each canonical module where its tensors lie in the
source and what has to be done to them (`CHANGES`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from manticore.conversion.block_spec import BlockSpec

Place = str | tuple[str, str]
"""A module of the source, or (module, name of a change)."""


@dataclass(frozen=True, kw_only=True)
class SourceFamily:
    """One `model_type` that can be converted."""

    block: Callable[[PreTrainedConfig], BlockSpec]
    """The blocks that a config describes."""
    stem: dict[str, Place]
    """Canonical module -> module of the source: embedding, positions, final norm."""
    layers: str
    """Where the list of layers lies."""
    layer: dict[str, Place]
    """Canonical module within a layer -> module within the source's layer."""


def _base(config: Any, **fields: Any) -> BlockSpec:
    """What all configs spell alike; `fields` over it."""
    n_layers, n_heads = config.num_hidden_layers, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    frequencies, amplitude = rotary_of(config, head_dim)
    values = {
        "hidden_size": config.hidden_size,
        "n_layers": n_layers,
        "vocab_size": config.vocab_size,
        "topology": "sequential",
        "n_heads": n_heads,
        "n_kv_heads": getattr(config, "num_key_value_heads", None) or n_heads,
        "head_dim": head_dim,
        "rotary_frequencies": frequencies,
        "rotary_amplitude": amplitude,
        "score_scales": (head_dim**-0.5,) * n_layers,
        "windows": _windows(config),
        "tied": bool(config.tie_word_embeddings),
    }
    return BlockSpec(**{**values, **fields})


def _llama_like(config: Any, **fields: Any) -> BlockSpec:
    shared = {
        "norm": "rms",
        "norm_eps": config.rms_norm_eps,
        "qkv_bias": bool(getattr(config, "attention_bias", False)),
        "output_bias": bool(getattr(config, "attention_bias", False)),
        "channel_mixer": "gated",
        "intermediate_size": config.intermediate_size,
        "activation": config.hidden_act,
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
    }
    return _base(config, **{**shared, **fields})


def _qwen2(config: Any) -> BlockSpec:
    # Its class has these biases whatever the config says.
    return _llama_like(config, qkv_bias=True, output_bias=False)


def _qwen3(config: Any) -> BlockSpec:
    return _llama_like(config, qk_norm="head-rms")


def _olmo2(config: Any) -> BlockSpec:
    return _llama_like(config, topology="post-norm", qk_norm="width-rms")


def _gpt_neox(config: Any) -> BlockSpec:
    return _base(
        config,
        topology="parallel" if config.use_parallel_residual else "sequential",
        norm="layer",
        norm_eps=config.layer_norm_eps,
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        channel_mixer="mlp",
        intermediate_size=config.intermediate_size,
        activation=config.hidden_act,
        mlp_bias=True,
    )


def _phi(config: Any) -> BlockSpec:
    return _base(
        config,
        topology="parallel",
        shared_norm=True,
        norm="layer",
        norm_eps=config.layer_norm_eps,
        qkv_bias=True,
        output_bias=True,
        qk_norm="head-layer" if config.qk_layernorm else "none",
        channel_mixer="mlp",
        intermediate_size=config.intermediate_size,
        activation=config.hidden_act,
        mlp_bias=True,
        head_bias=True,
    )


def _gpt2(config: Any) -> BlockSpec:
    head_dim = config.hidden_size // config.num_attention_heads
    scale = head_dim**-0.5 if config.scale_attn_weights else 1.0
    inverse = config.scale_attn_by_inverse_layer_idx
    return _base(
        config,
        norm="layer",
        norm_eps=config.layer_norm_epsilon,
        qkv_bias=True,
        output_bias=True,
        score_scales=tuple(
            scale / (index + 1 if inverse else 1) for index in range(config.num_hidden_layers)
        ),
        channel_mixer="mlp",
        intermediate_size=config.n_inner or 4 * config.hidden_size,
        activation=config.activation_function,
        mlp_bias=True,
        learned_positions=config.max_position_embeddings,
    )


def _gptj(config: Any) -> BlockSpec:
    return _base(
        config,
        topology="parallel",
        shared_norm=True,
        norm="layer",
        norm_eps=config.layer_norm_epsilon,
        qkv_bias=False,
        output_bias=False,
        channel_mixer="mlp",
        intermediate_size=config.n_inner or 4 * config.hidden_size,
        activation=config.activation_function,
        mlp_bias=True,
        head_bias=True,
    )


_LLAMA_LAYER: dict[str, Place] = {
    "mixer_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "mixer.q": "self_attn.q_proj",
    "mixer.k": "self_attn.k_proj",
    "mixer.v": "self_attn.v_proj",
    "mixer.output": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_QK_NORMS: dict[str, Place] = {
    "mixer.q_norm": "self_attn.q_norm",
    "mixer.k_norm": "self_attn.k_norm",
}
_STEM: dict[str, Place] = {
    "model.embed_tokens": "model.embed_tokens",
    "model.norm": "model.norm",
    "lm_head": "lm_head",
}


def _like_llama(
    block: Callable[[Any], BlockSpec], more: dict[str, Place] | None = None
) -> SourceFamily:
    layer = {**_LLAMA_LAYER, **(more or {})}
    return SourceFamily(block=block, stem=_STEM, layers="model.layers", layer=layer)


SOURCES: dict[str, SourceFamily] = {
    "llama": _like_llama(_llama_like),
    "mistral": _like_llama(_llama_like),
    "qwen2": _like_llama(_qwen2),
    "qwen3": _like_llama(_qwen3, _QK_NORMS),
    "olmo2": _like_llama(
        _olmo2,
        {
            **_QK_NORMS,
            "mixer_norm": "post_attention_layernorm",
            "mlp_norm": "post_feedforward_layernorm",
        },
    ),
    "gpt_neox": SourceFamily(
        block=_gpt_neox,
        stem={
            "model.embed_tokens": "gpt_neox.embed_in",
            "model.norm": "gpt_neox.final_layer_norm",
            "lm_head": "lm_head",
        },
        layers="gpt_neox.layers",
        layer={
            "mixer_norm": "input_layernorm",
            "mlp_norm": "post_attention_layernorm",
            "mixer.q": ("attention.query_key_value", "neox-q"),
            "mixer.k": ("attention.query_key_value", "neox-k"),
            "mixer.v": ("attention.query_key_value", "neox-v"),
            "mixer.output": "attention.dense",
            "mlp.up": "mlp.dense_h_to_4h",
            "mlp.down": "mlp.dense_4h_to_h",
        },
    ),
    "phi": SourceFamily(
        block=_phi,
        stem={**_STEM, "model.norm": "model.final_layernorm"},
        layers="model.layers",
        layer={
            "mixer_norm": "input_layernorm",
            "mixer.q": "self_attn.q_proj",
            "mixer.k": "self_attn.k_proj",
            "mixer.v": "self_attn.v_proj",
            "mixer.q_norm": "self_attn.q_layernorm",
            "mixer.k_norm": "self_attn.k_layernorm",
            "mixer.output": "self_attn.dense",
            "mlp.up": "mlp.fc1",
            "mlp.down": "mlp.fc2",
        },
    ),
    "gpt2": SourceFamily(
        block=_gpt2,
        stem={
            "model.embed_tokens": "transformer.wte",
            "model.positions": "transformer.wpe",
            "model.norm": "transformer.ln_f",
            "lm_head": "lm_head",
        },
        layers="transformer.h",
        layer={
            "mixer_norm": "ln_1",
            "mlp_norm": "ln_2",
            "mixer.q": ("attn.c_attn", "gpt2-q"),
            "mixer.k": ("attn.c_attn", "gpt2-k"),
            "mixer.v": ("attn.c_attn", "gpt2-v"),
            "mixer.output": ("attn.c_proj", "transposed"),
            "mlp.up": ("mlp.c_fc", "transposed"),
            "mlp.down": ("mlp.c_proj", "transposed"),
        },
    ),
    "gptj": SourceFamily(
        block=_gptj,
        stem={
            "model.embed_tokens": "transformer.wte",
            "model.norm": "transformer.ln_f",
            "lm_head": "lm_head",
        },
        layers="transformer.h",
        layer={
            "mixer_norm": "ln_1",
            "mixer.q": ("attn.q_proj", "halves"),
            "mixer.k": ("attn.k_proj", "halves"),
            "mixer.v": "attn.v_proj",
            "mixer.output": "attn.out_proj",
            "mlp.up": "mlp.fc_in",
            "mlp.down": "mlp.fc_out",
        },
    ),
}


def rotary_of(config: Any, head_dim: int) -> tuple[tuple[float, ...], float]:
    """Angles per position of each rotated pair of channels, and the factor on their amplitude.

    Raises:
        ValueError: angles that depend on the length, which no fixed table expresses.
    """
    if config.model_type == "gptj":
        return _plain_angles(config.rotary_dim or head_dim, 10000.0), 1.0
    rope = getattr(config, "rope_parameters", None)
    if rope is None:
        return (), 1.0
    kind = rope.get("rope_type", "default")
    if kind == "default":
        rotated = int(head_dim * rope.get("partial_rotary_factor", 1.0))
        return _plain_angles(rotated, rope["rope_theta"]), 1.0
    if kind not in ("linear", "llama3", "yarn"):
        raise ValueError(
            f"The source has rotary positions of kind {kind!r}, whose angles depend on the length. "
            "Sources with fixed angles can be converted: default, linear, llama3, yarn."
        )
    frequencies, amplitude = ROPE_INIT_FUNCTIONS[kind](config, device="cpu")
    return tuple(frequencies.tolist()), float(amplitude)


def _plain_angles(rotated: int, base: float) -> tuple[float, ...]:
    # In float32 and in this order, as the families compute them: angles grow with the position,
    # and so does a difference in the last bit.
    exponents = torch.arange(0, rotated, 2, dtype=torch.float32) / rotated
    return tuple((1.0 / base**exponents).tolist())


def _windows(config: Any) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return (window,) * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
