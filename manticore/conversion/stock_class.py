"""A class of transformers as the target of an export, and the fields that most configs share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from manticore.conversion.configuration_converted import ConvertedConfig
from manticore.conversion.stock_facts import USUAL, rope_parameters, seen_block

Fields = dict[str, Any]
Tensors = Mapping[str, Tensor]
Needs = dict[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class StockClass:
    """One class of transformers."""

    needs: Needs
    """Fact -> what the class can be; a fact that is not named may be anything."""
    fields: Callable[[ConvertedConfig], Fields]
    """Fields of the class's config."""
    tensors: Callable[[Tensors, ConvertedConfig], dict[str, Tensor]]
    """The class's tensors, from those of a `ConvertedForCausalLM`."""


ALL_BIASES = "queries, keys, values and output"
WHOLE_ROTARY: Needs = {
    "table of positions": ("none",),
    "rotated channels": ("all",),
    "rotary angles": ("default, base 10000", "default", "linear", "llama3"),
}
SOME_ROTARY: Needs = {**WHOLE_ROTARY, "rotated channels": ("all", "some")}
NO_WINDOW: Needs = {"windows": ("none",)}
LLAMA_BLOCKS: Needs = {
    "kept attention": ("as in the source",),
    "bias of the head": ("none",),
    "residual lines": ("sequential",),
    "norms": ("rms",),
    "norm of queries and keys": ("none",),
    "channel mixer": ("gated",),
    "biases of attention": ("none",),
    "biases of the channel mixer": ("none",),
    "scale of scores": (USUAL,),
}


def shared_fields(config: ConvertedConfig) -> Fields:
    """Sizes, tied tables and the length that the source was made for."""
    block = config.block_spec
    fields = {
        "vocab_size": config.vocab_size,
        "hidden_size": block.hidden_size,
        "num_hidden_layers": block.n_layers,
        "num_attention_heads": block.n_heads,
        "tie_word_embeddings": block.tied,
        "initializer_range": config.initializer_range,
    }
    if config.max_position_embeddings is not None:
        fields["max_position_embeddings"] = config.max_position_embeddings
    return fields


def rotary_fields(config: ConvertedConfig) -> Fields:
    """What all classes with rotary positions say, Llama's way."""
    block = config.block_spec
    return shared_fields(config) | {
        "num_key_value_heads": block.n_kv_heads,
        "intermediate_size": block.intermediate_size,
        "hidden_act": block.activation,
        "rope_parameters": rope_parameters(seen_block(config)),
        "attention_bias": block.output_bias,
    }


def llama_fields(config: ConvertedConfig) -> Fields:
    """Llama's config."""
    block = config.block_spec
    return rotary_fields(config) | {
        "rms_norm_eps": block.norm_eps,
        "head_dim": block.head_dim,
        "mlp_bias": block.mlp_bias,
    }


def with_part(fields: Fields) -> Fields:
    """For classes that rotate a part of a head unless the config says: all of it."""
    fields["rope_parameters"].setdefault("partial_rotary_factor", 1.0)
    return fields
