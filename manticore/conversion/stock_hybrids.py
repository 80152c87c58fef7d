"""Classes of transformers that mix attention with other token mixers, and what each can be.

Each needs a layer of attention: without one their caches cannot say how long they are, and
`generate` fails.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

from manticore.conversion.configuration_converted import ConvertedConfig
from manticore.conversion.softmax_heads import SoftmaxHeadsSpec
from manticore.conversion.stock_class import (
    ALL_BIASES,
    LLAMA_BLOCKS,
    NO_WINDOW,
    SOME_ROTARY,
    WHOLE_ROTARY,
    Fields,
    Needs,
    StockClass,
    llama_fields,
    rotary_fields,
    with_part,
)
from manticore.conversion.stock_facts import ALIKE, BLOCKS_EPS, USUAL, branches, even_steps
from manticore.conversion.stock_hybrid_tensors import NAMES, hybrid_tensors, qwen3_next_tensors
from manticore.mixers.gated_conv import GatedConvSpec
from manticore.mixers.gated_deltanet import GatedDeltaNetSpec
from manticore.mixers.interface import MixerSpec
from manticore.mixers.mamba2 import Mamba2Spec
from manticore.mixers.normed_mamba import NormedMambaSpec

_Spec = TypeVar("_Spec", bound=MixerSpec)


def _first(config: ConvertedConfig, kind: type[_Spec]) -> _Spec:
    return next(spec for spec in branches(config) if isinstance(spec, kind))


def _kinds(config: ConvertedConfig, other: str = "linear_attention") -> list[str]:
    """`layer_types`."""
    kept = [isinstance(spec, SoftmaxHeadsSpec) for spec in config.specs()]
    return ["full_attention" if attends else other for attends in kept]


def _without(fields: Fields, *names: str) -> Fields:
    return {name: value for name, value in fields.items() if name not in names}


def _mamba2(config: ConvertedConfig) -> Fields:
    spec = _first(config, Mamba2Spec)
    return {
        "rms_norm_eps": config.block_spec.norm_eps,
        "mamba_n_heads": spec.n_heads,
        "mamba_d_head": spec.head_dim,
        "mamba_n_groups": spec.n_groups,
        "mamba_d_state": spec.d_state,
        "mamba_d_conv": spec.conv_size,
        "mamba_expand": spec.expand,
    }


def _granite(config: ConvertedConfig) -> Fields:
    block = config.block_spec
    return rotary_fields(config) | {
        **_mamba2(config),
        "attention_multiplier": block.score_scales[0],
        "num_local_experts": 0,
        "shared_intermediate_size": block.intermediate_size,
        "position_embedding_type": "rope",
        "layer_types": _kinds(config),
    }


def _bamba(config: ConvertedConfig) -> Fields:
    where = [i for i, kind in enumerate(_kinds(config)) if kind == "full_attention"]
    return with_part(llama_fields(config)) | {**_mamba2(config), "attn_layer_indices": where}


def _falcon_h1(config: ConvertedConfig) -> Fields:
    own = {"mamba_d_ssm": None, "mamba_rms_norm": True, "mamba_norm_before_gate": False}
    return llama_fields(config) | _mamba2(config) | own


def _jamba(config: ConvertedConfig) -> Fields:
    spec, steps = _first(config, NormedMambaSpec), even_steps(config)
    assert steps is not None  # no difference was found
    shared = _without(llama_fields(config), "rope_parameters", "attention_bias", "mlp_bias")
    return shared | {
        "num_experts": 1,
        "attn_layer_period": steps[0],
        "attn_layer_offset": steps[1],
        "mamba_d_state": spec.d_state,
        "mamba_d_conv": spec.conv_size,
        "mamba_expand": spec.expand,
        "mamba_dt_rank": spec.rank,
    }


def _delta(config: ConvertedConfig) -> Fields:
    spec = _first(config, GatedDeltaNetSpec)
    return {
        "layer_types": _kinds(config),
        "linear_num_key_heads": spec.n_heads,
        "linear_num_value_heads": spec.n_heads,
        "linear_key_head_dim": spec.key_width // spec.n_heads,
        "linear_value_head_dim": spec.value_width // spec.n_heads,
        "linear_conv_kernel_dim": spec.conv_size,
    }


def _olmo_hybrid(config: ConvertedConfig) -> Fields:
    fields = _without(llama_fields(config), "mlp_bias") | _delta(config)
    fields["linear_allow_neg_eigval"] = _first(config, GatedDeltaNetSpec).allow_neg_eigval
    if fields["rope_parameters"] is None:  # a config without any gets the default angles
        fields["rope_parameters"] = {"rope_type": "default", "rope_theta": None}
    return fields


def _qwen3_next(config: ConvertedConfig) -> Fields:
    dense: dict[str, Any] = {
        "num_experts": 0,
        "mlp_only_layers": list(range(config.num_hidden_layers)),
    }
    fields = with_part(_without(llama_fields(config), "mlp_bias"))
    return fields | _delta(config) | dense


def _lfm2(config: ConvertedConfig) -> Fields:
    fields = _without(llama_fields(config), "rms_norm_eps", "attention_bias", "mlp_bias")
    return fields | {
        "norm_eps": config.block_spec.norm_eps,
        "block_auto_adjust_ff_dim": False,
        "conv_L_cache": _first(config, GatedConvSpec).conv_size,
        "layer_types": _kinds(config, other="conv"),
    }


_MAMBA2: Needs = {**NO_WINDOW, "token mixers": ("attention and mamba2",), "activation": ("silu",)}
"""One field is the activation of the MLPs and of the convolution."""
_DELTA: Needs = {
    **NO_WINDOW,
    "token mixers": ("attention and gated-deltanet",),
    "activation": ("silu",),
}
HYBRIDS: dict[str, StockClass] = {
    "granitemoehybrid": StockClass(
        needs={
            **LLAMA_BLOCKS,
            **WHOLE_ROTARY,
            **_MAMBA2,
            "Mamba-2": (ALIKE,),
            "width of heads": ("d_model / n_heads",),
            "scale of scores": (USUAL, "1", "one factor"),
        },
        fields=_granite,
        tensors=partial(hybrid_tensors, NAMES["granitemoehybrid"]),
    ),
    "bamba": StockClass(
        needs={
            **LLAMA_BLOCKS,
            **SOME_ROTARY,
            **_MAMBA2,
            "Mamba-2": (ALIKE, "with a norm for each group"),
            "biases of attention": ("none", ALL_BIASES),
            "biases of the channel mixer": ("none", "yes"),
        },
        fields=_bamba,
        tensors=partial(hybrid_tensors, NAMES["bamba"]),
    ),
    "falcon_h1": StockClass(
        needs={
            **LLAMA_BLOCKS,
            **WHOLE_ROTARY,
            **_MAMBA2,
            "token mixers": ("attention-mamba2",),
            "Mamba-2": (ALIKE, "with a norm for each group"),
            "biases of attention": ("none", ALL_BIASES),
            "biases of the channel mixer": ("none", "yes"),
        },
        fields=_falcon_h1,
        tensors=partial(hybrid_tensors, NAMES["falcon_h1"]),
    ),
    "jamba": StockClass(
        needs={
            **LLAMA_BLOCKS,
            **NO_WINDOW,
            "token mixers": ("attention and normed-mamba",),
            "activation": ("silu",),
            "Mamba": (ALIKE,),
            "attention layers": ("in even steps",),
            "table of positions": ("none",),
            "rotated channels": ("none",),
        },
        fields=_jamba,
        tensors=partial(hybrid_tensors, NAMES["jamba"]),
    ),
    "olmo_hybrid": StockClass(
        needs={
            **LLAMA_BLOCKS,
            **_DELTA,
            "gated DeltaNet": (ALIKE, "with negative eigenvalues"),
            "norm_eps of gated DeltaNet": ("1e-05",),  # whatever its config says
            "residual lines": ("post-norm around attention, sequential around the rest",),
            "norm of queries and keys": ("width-rms",),
            "biases of attention": ("none", ALL_BIASES),
            "table of positions": ("none",),
            "rotated channels": ("none", "all"),
            "rotary angles": ("none", *WHOLE_ROTARY["rotary angles"]),
        },
        fields=_olmo_hybrid,
        tensors=partial(hybrid_tensors, NAMES["olmo_hybrid"]),
    ),
    "qwen3_next": StockClass(
        needs={
            **LLAMA_BLOCKS,
            **SOME_ROTARY,
            **_DELTA,
            "gated DeltaNet": (ALIKE,),
            "norm in gated DeltaNet": (BLOCKS_EPS,),
            "norm of queries and keys": ("head-rms",),
            "biases of attention": ("none", ALL_BIASES),
        },
        fields=_qwen3_next,
        tensors=qwen3_next_tensors,
    ),
    "lfm2": StockClass(
        needs={
            **LLAMA_BLOCKS,
            **WHOLE_ROTARY,
            **NO_WINDOW,
            "token mixers": ("attention and gated-conv",),
            "gated convolution": (ALIKE,),
            "activation": ("silu",),
            "norm of queries and keys": ("head-rms",),
        },
        fields=_lfm2,
        tensors=partial(hybrid_tensors, NAMES["lfm2"]),
    ),
}
