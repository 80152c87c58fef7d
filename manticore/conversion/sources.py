"""The source families: how each one's config and tensors become the canonical blocks.

The canonical names are those of `ConvertedForCausalLM` with its attention kept. A row of the table
says what the blocks are (`block`), and for each canonical module where its tensors lie in the
source and what has to be done to them (`reading.CHANGES`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from manticore.conversion.block_spec import BlockSpec
from manticore.conversion.source_blocks import (
    arcee_blocks,
    ernie_blocks,
    gpt2_blocks,
    gpt_neox_blocks,
    gptj_blocks,
    helium_blocks,
    llama_blocks,
    olmo2_blocks,
    phi_blocks,
    qwen2_blocks,
    qwen3_blocks,
    starcoder2_blocks,
)

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
_NEIGHBOURS: dict[str, Place] = {
    "mixer.q": ("self_attn.q_proj", "halves"),
    "mixer.k": ("self_attn.k_proj", "halves"),
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
    "llama": _like_llama(llama_blocks),
    "arcee": _like_llama(arcee_blocks),
    "ernie4_5": _like_llama(ernie_blocks, _NEIGHBOURS),
    "helium": _like_llama(helium_blocks, _NEIGHBOURS),
    "mistral": _like_llama(llama_blocks),
    "qwen2": _like_llama(qwen2_blocks),
    "qwen3": _like_llama(qwen3_blocks, _QK_NORMS),
    "olmo2": _like_llama(
        olmo2_blocks,
        {
            **_QK_NORMS,
            "mixer_norm": "post_attention_layernorm",
            "mlp_norm": "post_feedforward_layernorm",
        },
    ),
    "starcoder2": _like_llama(starcoder2_blocks, {"mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}),
    "gpt_neox": SourceFamily(
        block=gpt_neox_blocks,
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
        block=phi_blocks,
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
        block=gpt2_blocks,
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
        block=gptj_blocks,
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
