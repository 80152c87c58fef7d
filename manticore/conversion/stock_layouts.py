"""Converted models that a class of transformers computes: which class, its config, its tensors.

A row of `STOCK` says what a class needs of the facts in `stock_facts`; what a row does not name may
be anything. The first row without a difference is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from manticore.conversion.configuration_converted import ConvertedConfig
from manticore.conversion.modeling_converted import ConvertedForCausalLM
from manticore.conversion.stock_facts import USUAL, facts, rope_parameters, windows_of
from manticore.conversion.writing import granite_tensors, source_tensors
from manticore.mixers.mamba2 import Mamba2Spec
from manticore.models.stock import SPECIAL_TOKENS, NoStockClassError, stock_model

Fields = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StockClass:
    """One class of transformers as the target of an export."""

    needs: dict[str, tuple[str, ...]]
    """Fact -> what the class can be."""
    fields: Callable[[ConvertedConfig], Fields]
    """Fields of the class's config."""
    tensors: str | None
    """The row of `sources` whose names it has; None: Granite's."""


def as_stock_model(model: ConvertedForCausalLM) -> PreTrainedModel:
    """The same function as a model of transformers' own class.

    Raises:
        NoStockClassError: no class expresses it; the message names the first difference to the
            class that comes nearest.
    """
    config = stock_config(model.config)
    block, state = model.config.block_spec, model.state_dict()
    row = STOCK[config.model_type].tensors
    if row is not None:
        return stock_model(config, source_tensors(row, state, block))
    is_mamba = [isinstance(spec, Mamba2Spec) for spec in model.config.specs()]
    return stock_model(config, granite_tensors(state, is_mamba))


def stock_config(config: ConvertedConfig) -> PreTrainedConfig:
    """The config of the class that expresses a converted model; raises as above."""
    found = facts(config)
    differences = {name: _differences(row, found) for name, row in STOCK.items()}
    # A class with the mixers at hand says more about what is in the way than one without them.
    nearest = min(STOCK, key=lambda n: (not _has_mixers(STOCK[n], found), len(differences[n])))
    if differences[nearest]:
        raise NoStockClassError(
            f"No class of transformers has this layout. {nearest} comes nearest, but "
            f"{differences[nearest][0]}."
        )
    special = {name: getattr(config, name, None) for name in SPECIAL_TOKENS}
    fields = STOCK[nearest].fields(config)
    return CONFIG_MAPPING[nearest](**fields, **special)


def _has_mixers(row: StockClass, found: dict[str, str]) -> bool:
    return found["token mixers"] in row.needs["token mixers"]


def _differences(row: StockClass, found: dict[str, str]) -> list[str]:
    return [
        f"{fact}: {found[fact]} here, {' or '.join(row.needs[fact])} there"
        for fact in found
        if fact in row.needs and found[fact] not in row.needs[fact]
    ]


def _shared(config: ConvertedConfig) -> Fields:
    block = config.block_spec
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": block.hidden_size,
        "num_hidden_layers": block.n_layers,
        "num_attention_heads": block.n_heads,
        "tie_word_embeddings": block.tied,
        "initializer_range": config.initializer_range,
    }


def _rotary(config: ConvertedConfig) -> Fields:
    block = config.block_spec
    return _shared(config) | {
        "num_key_value_heads": block.n_kv_heads,
        "intermediate_size": block.intermediate_size,
        "hidden_act": block.activation,
        "rope_parameters": rope_parameters(block),
        "attention_bias": block.output_bias,
    }


def _llama(config: ConvertedConfig) -> Fields:
    block = config.block_spec
    return _rotary(config) | {
        "rms_norm_eps": block.norm_eps,
        "head_dim": block.head_dim,
        "mlp_bias": block.mlp_bias,
    }


def _windowed(config: ConvertedConfig) -> Fields:
    """Fields of classes that say of each layer whether it has the window."""
    windows = windows_of(config)
    size = next((window for window in windows if window is not None), None)
    kinds = ["full_attention" if w is None else "sliding_attention" for w in windows]
    fields = {k: v for k, v in _llama(config).items() if k != "mlp_bias"}
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


def _granite(config: ConvertedConfig) -> Fields:
    block = config.block_spec
    specs = config.specs()
    mamba = next(spec for spec in specs if isinstance(spec, Mamba2Spec))
    kinds = [
        "linear_attention" if isinstance(spec, Mamba2Spec) else "full_attention" for spec in specs
    ]
    return _rotary(config) | {
        "rms_norm_eps": block.norm_eps,
        "attention_multiplier": block.score_scales[0],
        "num_local_experts": 0,
        "shared_intermediate_size": block.intermediate_size,
        "position_embedding_type": "rope",
        "layer_types": kinds,
        "mamba_n_heads": mamba.n_heads,
        "mamba_d_head": mamba.head_dim,
        "mamba_n_groups": mamba.n_groups,
        "mamba_d_state": mamba.d_state,
        "mamba_d_conv": mamba.conv_size,
        "mamba_expand": mamba.expand,
    }


def _gpt_neox(config: ConvertedConfig) -> Fields:
    block = config.block_spec
    return _rotary(config) | {
        "layer_norm_eps": block.norm_eps,
        "use_parallel_residual": block.topology == "parallel",
    }


def _phi(config: ConvertedConfig) -> Fields:
    block = config.block_spec
    own = {"layer_norm_eps": block.norm_eps, "qk_layernorm": block.qk_norm == "head-layer"}
    return _with_part(_rotary(config)) | own


def _with_part(fields: Fields) -> Fields:
    # Phi and GPT-NeoX rotate a part of a head unless the config says: all of it.
    fields["rope_parameters"].setdefault("partial_rotary_factor", 1.0)
    return fields


def _gpt2(config: ConvertedConfig) -> Fields:
    block = config.block_spec
    scale = facts(config)["scale of scores"]
    return _shared(config) | {
        "n_inner": block.intermediate_size,
        "activation_function": block.activation,
        "layer_norm_epsilon": block.norm_eps,
        "max_position_embeddings": block.learned_positions,
        "scale_attn_weights": scale.startswith(USUAL),
        "scale_attn_by_inverse_layer_idx": scale.endswith("/ layer"),
    }


def _gptj(config: ConvertedConfig) -> Fields:
    block = config.block_spec
    return _shared(config) | {
        "n_inner": block.intermediate_size,
        "activation_function": block.activation,
        "layer_norm_epsilon": block.norm_eps,
        "rotary_dim": 2 * len(block.rotary_frequencies),
    }


_ALL_BIASES = "queries, keys, values and output"
_KEPT = {
    "token mixers": ("attention",),
    "kept attention": ("as in the source",),
    "bias of the head": ("none",),
}
_WHOLE_ROTARY = {
    "table of positions": ("none",),
    "rotated channels": ("all",),
    "rotary angles": ("default, base 10000", "default", "linear", "llama3"),
}
_SOME_ROTARY = {**_WHOLE_ROTARY, "rotated channels": ("all", "some")}
_LLAMA = {
    **_KEPT,
    **_WHOLE_ROTARY,
    "residual lines": ("sequential",),
    "norms": ("rms",),
    "norm of queries and keys": ("none",),
    "channel mixer": ("gated",),
    "biases of attention": ("none",),
    "biases of the channel mixer": ("none",),
    "scale of scores": (USUAL,),
}
_NO_WINDOW = {"windows": ("none",)}
_ANY_ONE_WINDOW = {"windows": ("none", "one size, in some layers", "one size, everywhere")}
_OLMO = {
    **_LLAMA,
    "residual lines": ("post-norm",),
    "norm of queries and keys": ("width-rms",),
    "biases of attention": ("none", _ALL_BIASES),
}
_PLAIN_MLP = {
    **_KEPT,
    **_NO_WINDOW,
    "norms": ("layer",),
    "norm of queries and keys": ("none",),
    "channel mixer": ("mlp",),
    "biases of the channel mixer": ("yes",),
    "width of heads": ("d_model / n_heads",),
}
STOCK: dict[str, StockClass] = {
    "llama": StockClass(
        needs={
            **_LLAMA,
            **_NO_WINDOW,
            "biases of attention": ("none", _ALL_BIASES),
            "biases of the channel mixer": ("none", "yes"),
        },
        fields=_llama,
        tensors="llama",
    ),
    "mistral": StockClass(
        needs={**_LLAMA, "windows": ("one size, everywhere",)}, fields=_mistral, tensors="llama"
    ),
    "ministral": StockClass(
        needs={**_LLAMA, "windows": ("one size, in some layers",)},
        fields=_windowed,
        tensors="llama",
    ),
    "qwen2": StockClass(
        needs={**_LLAMA, **_ANY_ONE_WINDOW, "biases of attention": ("queries, keys, values",)},
        fields=_qwen,
        tensors="qwen2",
    ),
    "qwen3": StockClass(
        needs={
            **_LLAMA,
            **_ANY_ONE_WINDOW,
            "norm of queries and keys": ("head-rms",),
            "biases of attention": ("none", _ALL_BIASES),
        },
        fields=_qwen,
        tensors="qwen3",
    ),
    "olmo2": StockClass(needs={**_OLMO, **_NO_WINDOW}, fields=_llama, tensors="olmo2"),
    "olmo3": StockClass(needs={**_OLMO, **_ANY_ONE_WINDOW}, fields=_olmo3, tensors="olmo2"),
    "granitemoehybrid": StockClass(
        needs={
            **_LLAMA,
            **_NO_WINDOW,
            # Without any attention its cache cannot say how long it is.
            "token mixers": ("attention and mamba2",),
            "Mamba-2": ("alike everywhere",),
            "activation": ("silu",),  # one field for the MLPs and for Mamba-2's convolution
            "width of heads": ("d_model / n_heads",),
            "scale of scores": (USUAL, "1", "one factor"),
        },
        fields=_granite,
        tensors=None,
    ),
    "gpt_neox": StockClass(
        needs={
            **_PLAIN_MLP,
            **_SOME_ROTARY,
            "residual lines": ("parallel", "sequential"),
            "biases of attention": ("none", _ALL_BIASES),
            "key heads": ("one for each",),
            "scale of scores": (USUAL,),
        },
        fields=lambda config: _with_part(_gpt_neox(config)),
        tensors="gpt_neox",
    ),
    "phi": StockClass(
        needs={
            **_PLAIN_MLP,
            **_SOME_ROTARY,
            "residual lines": ("parallel, one norm",),
            "norm of queries and keys": ("none", "head-layer"),
            "biases of attention": (_ALL_BIASES,),
            "bias of the head": ("yes",),
            "scale of scores": (USUAL,),
        },
        fields=_phi,
        tensors="phi",
    ),
    "gpt2": StockClass(
        needs={
            **_PLAIN_MLP,
            "residual lines": ("sequential",),
            "biases of attention": (_ALL_BIASES,),
            "key heads": ("one for each",),
            "table of positions": ("yes",),
            "rotated channels": ("none",),
            "scale of scores": (USUAL, "1", f"{USUAL} / layer", "1 / layer"),
        },
        fields=_gpt2,
        tensors="gpt2",
    ),
    "gptj": StockClass(
        needs={
            **_PLAIN_MLP,
            **_SOME_ROTARY,
            "residual lines": ("parallel, one norm",),
            "biases of attention": ("none",),
            "bias of the head": ("yes",),
            "key heads": ("one for each",),
            "rotary angles": ("default, base 10000",),
            "scale of scores": (USUAL,),
        },
        fields=_gptj,
        tensors="gptj",
    ),
}
