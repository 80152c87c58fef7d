"""Classes of transformers whose layers are all attention, and what each can be.

The first row without a difference is taken, so a class comes before those that can do more.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from manticore.conversion.configuration_converted import ConvertedConfig
from manticore.conversion.stock_class import (
    ALL_BIASES,
    LLAMA_BLOCKS,
    NO_WINDOW,
    SOME_ROTARY,
    WHOLE_ROTARY,
    Fields,
    Needs,
    StockClass,
    Tensors,
    llama_fields,
    rotary_fields,
    shared_fields,
    with_part,
)
from manticore.conversion.stock_facts import USUAL, facts, windows_of
from manticore.conversion.writing import source_tensors


def _of_source(row: str, state: Tensors, config: ConvertedConfig) -> dict[str, Tensor]:
    """The tensors under the names of a row of `sources`."""
    return source_tensors(row, state, config.block_spec)


def _windowed(config: ConvertedConfig) -> Fields:
    """Fields of classes that say of each layer whether it has the window."""
    windows = windows_of(config)
    size = next((window for window in windows if window is not None), None)
    kinds = ["full_attention" if w is None else "sliding_attention" for w in windows]
    fields = {k: v for k, v in llama_fields(config).items() if k != "mlp_bias"}
    return fields | {"sliding_window": size, "layer_types": kinds}


def _qwen(config: ConvertedConfig) -> Fields:
    fields = _windowed(config)
    return fields | {"use_sliding_window": fields["sliding_window"] is not None}


def _mistral(config: ConvertedConfig) -> Fields:
    return {k: v for k, v in _windowed(config).items() if k != "layer_types"}


def _olmo3(config: ConvertedConfig) -> Fields:
    fields = _windowed(config)
    kinds, rope = set(fields["layer_types"]), fields["rope_parameters"]
    return fields | {"rope_parameters": {kind: dict(rope) for kind in sorted(kinds)}}


def _starcoder2(config: ConvertedConfig) -> Fields:
    block = config.block_spec
    fields = {k: v for k, v in rotary_fields(config).items() if k != "attention_bias"}
    return fields | {
        "norm_epsilon": block.norm_eps,
        "use_bias": block.mlp_bias,
        "sliding_window": windows_of(config)[0],
    }


def _gpt_neox(config: ConvertedConfig) -> Fields:
    block = config.block_spec
    return rotary_fields(config) | {
        "layer_norm_eps": block.norm_eps,
        "use_parallel_residual": block.topology == "parallel",
    }


def _phi(config: ConvertedConfig) -> Fields:
    block = config.block_spec
    own = {"layer_norm_eps": block.norm_eps, "qk_layernorm": block.qk_norm == "head-layer"}
    return with_part(rotary_fields(config)) | own


def _gpt2(config: ConvertedConfig) -> Fields:
    block = config.block_spec
    scale = facts(config)["scale of scores"]
    return shared_fields(config) | {
        "n_inner": block.intermediate_size,
        "activation_function": block.activation,
        "layer_norm_epsilon": block.norm_eps,
        "max_position_embeddings": block.learned_positions,
        "scale_attn_weights": scale.startswith(USUAL),
        "scale_attn_by_inverse_layer_idx": scale.endswith("/ layer"),
    }


def _gptj(config: ConvertedConfig) -> Fields:
    block = config.block_spec
    return shared_fields(config) | {
        "n_inner": block.intermediate_size,
        "activation_function": block.activation,
        "layer_norm_epsilon": block.norm_eps,
        "rotary_dim": 2 * len(block.rotary_frequencies),
    }


_KEPT: Needs = {
    "token mixers": ("attention",),
    "kept attention": ("as in the source",),
    "bias of the head": ("none",),
}
_LLAMA: Needs = {**_KEPT, **LLAMA_BLOCKS, **WHOLE_ROTARY}
_ANY_ONE_WINDOW: Needs = {"windows": ("none", "one size, in some layers", "one size, everywhere")}
_OLMO: Needs = {
    **_LLAMA,
    "residual lines": ("post-norm",),
    "norm of queries and keys": ("width-rms",),
    "biases of attention": ("none", ALL_BIASES),
}
_PLAIN_MLP: Needs = {
    **_KEPT,
    **NO_WINDOW,
    "norms": ("layer",),
    "norm of queries and keys": ("none",),
    "channel mixer": ("mlp",),
    "biases of the channel mixer": ("yes",),
    "width of heads": ("d_model / n_heads",),
}
ATTENTION: dict[str, StockClass] = {
    "llama": StockClass(
        needs={
            **_LLAMA,
            **NO_WINDOW,
            "biases of attention": ("none", ALL_BIASES),
            "biases of the channel mixer": ("none", "yes"),
        },
        fields=llama_fields,
        tensors=partial(_of_source, "llama"),
    ),
    "arcee": StockClass(
        needs={
            **_LLAMA,
            **NO_WINDOW,
            "channel mixer": ("mlp",),
            "biases of attention": ("none", ALL_BIASES),
            "biases of the channel mixer": ("none", "yes"),
        },
        fields=llama_fields,
        tensors=partial(_of_source, "arcee"),
    ),
    "mistral": StockClass(
        needs={**_LLAMA, "windows": ("one size, everywhere",)},
        fields=_mistral,
        tensors=partial(_of_source, "llama"),
    ),
    "ministral": StockClass(
        needs={**_LLAMA, "windows": ("one size, in some layers",)},
        fields=_windowed,
        tensors=partial(_of_source, "llama"),
    ),
    "qwen2": StockClass(
        needs={**_LLAMA, **_ANY_ONE_WINDOW, "biases of attention": ("queries, keys, values",)},
        fields=_qwen,
        tensors=partial(_of_source, "qwen2"),
    ),
    "qwen3": StockClass(
        needs={
            **_LLAMA,
            **_ANY_ONE_WINDOW,
            "norm of queries and keys": ("head-rms",),
            "biases of attention": ("none", ALL_BIASES),
        },
        fields=_qwen,
        tensors=partial(_of_source, "qwen3"),
    ),
    "olmo2": StockClass(
        needs={**_OLMO, **NO_WINDOW}, fields=llama_fields, tensors=partial(_of_source, "olmo2")
    ),
    "olmo3": StockClass(
        needs={**_OLMO, **_ANY_ONE_WINDOW}, fields=_olmo3, tensors=partial(_of_source, "olmo2")
    ),
    "gpt_neox": StockClass(
        needs={
            **_PLAIN_MLP,
            **SOME_ROTARY,
            "residual lines": ("parallel", "sequential"),
            "biases of attention": ("none", ALL_BIASES),
            "key heads": ("one for each",),
            "scale of scores": (USUAL,),
        },
        fields=lambda config: with_part(_gpt_neox(config)),
        tensors=partial(_of_source, "gpt_neox"),
    ),
    "starcoder2": StockClass(
        needs={
            **_PLAIN_MLP,
            **WHOLE_ROTARY,
            "windows": ("none", "one size, everywhere"),
            "residual lines": ("sequential",),
            "biases of attention": ("none", ALL_BIASES),
            "biases of the channel mixer": ("none", "yes"),
            "scale of scores": (USUAL,),
        },
        fields=_starcoder2,
        tensors=partial(_of_source, "starcoder2"),
    ),
    "phi": StockClass(
        needs={
            **_PLAIN_MLP,
            **SOME_ROTARY,
            "residual lines": ("parallel, one norm",),
            "norm of queries and keys": ("none", "head-layer"),
            "biases of attention": (ALL_BIASES,),
            "bias of the head": ("yes",),
            "scale of scores": (USUAL,),
        },
        fields=_phi,
        tensors=partial(_of_source, "phi"),
    ),
    "gpt2": StockClass(
        needs={
            **_PLAIN_MLP,
            "residual lines": ("sequential",),
            "biases of attention": (ALL_BIASES,),
            "key heads": ("one for each",),
            "table of positions": ("yes",),
            "rotated channels": ("none",),
            "scale of scores": (USUAL, "1", f"{USUAL} / layer", "1 / layer"),
        },
        fields=_gpt2,
        tensors=partial(_of_source, "gpt2"),
    ),
    "gptj": StockClass(
        needs={
            **_PLAIN_MLP,
            **SOME_ROTARY,
            "residual lines": ("parallel, one norm",),
            "biases of attention": ("none",),
            "bias of the head": ("yes",),
            "key heads": ("one for each",),
            "rotary angles": ("default, base 10000",),
            "scale of scores": (USUAL,),
        },
        fields=_gptj,
        tensors=partial(_of_source, "gptj"),
    ),
}
