"""The blocks that a source's config describes, one function for each kind of family."""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from manticore.conversion.block_spec import BlockSpec


def llama_blocks(config: Any, **fields: Any) -> BlockSpec:
    """RMS norms, rotary positions and a gated MLP: Llama, Mistral, and `fields` over it."""
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
    return _common_blocks(config, **{**shared, **fields})


def qwen2_blocks(config: Any) -> BlockSpec:
    """Llama's, with biases on queries, keys and values."""
    # Its class has these biases whatever the config says.
    return llama_blocks(config, qkv_bias=True, output_bias=False)


def qwen3_blocks(config: Any) -> BlockSpec:
    """Llama's, with a norm on each head of queries and keys."""
    return llama_blocks(config, qk_norm="head-rms")


def olmo2_blocks(config: Any) -> BlockSpec:
    """Llama's, with norms behind the mixers and over the whole width of queries and keys."""
    return llama_blocks(config, topology="post-norm", qk_norm="width-rms")


def arcee_blocks(config: Any) -> BlockSpec:
    """Llama's, with an MLP that has no gate."""
    return llama_blocks(config, channel_mixer="mlp")


def ernie_blocks(config: Any) -> BlockSpec:
    """Llama's, with one setting for the biases of all maps."""
    has_bias = config.use_bias
    return llama_blocks(config, qkv_bias=has_bias, output_bias=has_bias, mlp_bias=has_bias)


def helium_blocks(config: Any) -> BlockSpec:
    """Llama's, without a bias on attention's output."""
    return llama_blocks(config, output_bias=False)


def starcoder2_blocks(config: Any) -> BlockSpec:
    """Rotary positions and windows as in Mistral, norms and MLPs as in GPT-2."""
    return _common_blocks(
        config,
        norm="layer",
        norm_eps=config.norm_epsilon,
        qkv_bias=config.use_bias,
        output_bias=config.use_bias,
        channel_mixer="mlp",
        intermediate_size=config.intermediate_size,
        activation=config.hidden_act,
        mlp_bias=config.use_bias,
    )


def gpt_neox_blocks(config: Any) -> BlockSpec:
    """Pythia's: attention and MLP side by side unless the config says otherwise."""
    return _common_blocks(
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


def phi_blocks(config: Any) -> BlockSpec:
    """Attention and MLP side by side behind one norm, with biases everywhere."""
    return _common_blocks(
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


def gpt2_blocks(config: Any) -> BlockSpec:
    """Learned positions, and scores that may be scaled by the index of the layer."""
    head_dim = config.hidden_size // config.num_attention_heads
    scale = head_dim**-0.5 if config.scale_attn_weights else 1.0
    inverse = config.scale_attn_by_inverse_layer_idx
    return _common_blocks(
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


def gptj_blocks(config: Any) -> BlockSpec:
    """Attention and MLP side by side behind one norm; biases in the MLP and the head alone."""
    return _common_blocks(
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


def _common_blocks(config: Any, **fields: Any) -> BlockSpec:
    """What all configs spell alike; `fields` over it."""
    n_layers, n_heads = config.num_hidden_layers, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    # The other families turn all channels, whatever their config says.
    partial = config.model_type in ("gpt_neox", "phi")
    frequencies, amplitude = rotary_of(config, head_dim, partial)
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


def rotary_of(config: Any, head_dim: int, partial: bool = True) -> tuple[tuple[float, ...], float]:
    """Angles per position of each rotated pair of channels, and the factor on their amplitude.

    Args:
        partial: whether the family heeds a setting that only some channels turn.

    Raises:
        ValueError: angles that depend on the length, which no fixed table expresses.
    """
    if config.model_type == "gptj":
        return plain_angles(config.rotary_dim or head_dim, 10000.0), 1.0
    rope = getattr(config, "rope_parameters", None)
    if rope is None:
        return (), 1.0
    kind = rope.get("rope_type", "default")
    if kind == "default":
        share = rope.get("partial_rotary_factor", 1.0) if partial else 1.0
        return plain_angles(int(head_dim * share), rope["rope_theta"]), 1.0
    if kind not in ("linear", "llama3", "yarn"):
        raise ValueError(
            f"The source has rotary positions of kind {kind!r}, whose angles depend on the length. "
            "Sources with fixed angles can be converted: default, linear, llama3, yarn."
        )
    frequencies, amplitude = ROPE_INIT_FUNCTIONS[kind](config, device="cpu")
    return tuple(frequencies.tolist()), float(amplitude)


def plain_angles(rotated: int, base: float) -> tuple[float, ...]:
    """base ** (-2 i / R) for each pair i of the R rotated channels."""
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
