"""Which layers of flash-linear-attention (fla) are ours: a rule and the defaults of each model.

`imports_fla` reads configurations by these rules, `exports_fla` writes them by the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from manticore.mixers.feature_maps import MapName, num_features
from manticore.models.foreign_layers import ANY, Rule, Settings, check_value

LIBRARY = "flash-linear-attention"


def _attention(settings: Settings) -> dict[str, Any]:
    base = settings.get("rope_theta", 10000.0)
    ours: dict[str, Any] = {"qkv_bias": bool(settings.get("qkv_bias", False)), "output_bias": False}
    ours |= {"rotary_fraction": 0.0} if base is None else {"rotary_base": float(base)}
    if settings.get("window_size") is not None:
        ours["window"] = int(settings["window_size"])
    return ours


def _gated_deltanet(settings: Settings) -> dict[str, Any]:
    keys = settings["num_heads"] * settings["head_dim"] / settings["_width"]
    return {"expand_key": keys, "expand_value": keys * settings["expand_v"]} | _conv(settings)


def _conv(settings: Settings) -> dict[str, Any]:
    return {"conv_size": settings["conv_size"] if settings["use_short_conv"] else 0}


def _linear_attn(settings: Settings) -> dict[str, Any]:
    name = settings["feature_map"]
    check_value(LIBRARY, "feature_map", name, tuple(FEATURE_MAPS))
    # Their sums are divided by the root of the number of features and ours are not; behind the
    # norm that is a larger epsilon.
    features = num_features(FEATURE_MAPS[name], settings["_width"] // settings["num_heads"])
    return {
        "feature_map": FEATURE_MAPS[name],
        "normalize": "rms",
        "norm_eps": settings["norm_eps"] * features,
    }


def _swiglu(settings: Settings, width: int) -> dict[str, Any]:
    check_value(LIBRARY, "hidden_act", settings.get("hidden_act", "swish"), ("swish", "silu"))
    inner = settings.get("intermediate_size")
    if inner is None:
        ratio = settings.get("hidden_ratio")
        ratio = _RATIOS.get(str(settings["model_type"]), 4) if ratio is None else ratio
        inner = 256 * -(-int(width * ratio * 2 / 3) // 256)
    return {"mixer": "swiglu", "inner_width": int(inner)}


def _rwkv6(settings: Settings) -> dict[str, Any]:
    head_size = settings["_width"] // settings["num_heads"]
    return {"head_size": head_size, "norm_eps": settings["norm_eps"]}


def _rwkv6_channel(settings: Settings, width: int) -> dict[str, Any]:
    check_value(LIBRARY, "hidden_act", settings.get("hidden_act", "sqrelu"), "sqrelu")
    inner = settings.get("intermediate_size")
    if inner is None:
        ratio = settings.get("hidden_ratio")
        inner = 32 * -(-int(width * (3.5 if ratio is None else ratio)) // 32)
    return {"mixer": "rwkv6-channel", "expand": inner / width}


def _mamba(settings: Settings) -> dict[str, Any]:
    inner = settings["expand"] * settings["_width"]
    given = settings.get("intermediate_size", inner)
    check_value(LIBRARY, "intermediate_size", given, inner)
    rank = settings["dt_rank"]
    return {"dt_rank": None if rank == "auto" else rank}


def _mamba2(settings: Settings) -> dict[str, Any]:
    heads = settings["expand"] * settings["_width"] // settings["head_dim"]
    check_value(LIBRARY, "num_heads", settings.get("num_heads", heads), heads)
    return {}


_RATIOS = {"retnet": 2}
"""hidden_ratio where a configuration does not say; elsewhere 4."""
CHANNELS: dict[str, Callable[[Settings, int], dict[str, Any]]] = {
    **dict.fromkeys(
        ("transformer", "linear_attn", "gla", "retnet", "delta_net", "gated_deltanet"), _swiglu
    ),
    "rwkv6": _rwkv6_channel,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "transformer": {"num_heads": 32, "norm_eps": 1e-6},
    "linear_attn": {
        "num_heads": 4, "feature_map": "elementwise_product", "norm_eps": 1e-6,
    },
    "gla": {"num_heads": 4, "expand_k": 0.5, "expand_v": 1.0, "norm_eps": 1e-6},
    "retnet": {"num_heads": 8, "expand_v": 2.0, "norm_eps": 1e-6},
    "delta_net": {"num_heads": 16, "use_short_conv": True, "conv_size": 4, "norm_eps": 1e-6},
    "gated_deltanet": {
        "num_heads": 6, "head_dim": 256, "expand_v": 2.0, "use_short_conv": True, "conv_size": 4,
        "norm_eps": 1e-6,
    },
    "rwkv6": {"num_heads": 4, "expand_k": 0.5, "norm_eps": 1e-5},
    "mamba": {"state_size": 16, "conv_kernel": 4, "expand": 2, "dt_rank": "auto",
              "norm_eps": 1e-5},
    "mamba2": {"state_size": 128, "conv_kernel": 4, "expand": 2, "head_dim": 64, "n_groups": 1,
               "norm_eps": 1e-5},
}  # fmt: skip
"""What fla takes where a configuration does not say and ours is another."""
FEATURE_MAPS: dict[str, MapName] = {
    "elementwise_product": "quadratic",
    "elu": "elu",
    "relu": "relu",
    "hedgehog": "hedgehog",
}
"""Their feature maps -> ours."""
# Common to both Mambas: maps without bias, a convolution with one, first steps as published.
_SSM_FIELDS = {"state_size": "d_state", "conv_kernel": "conv_size", "expand": "expand"}
_SSM_ONLY = {
    "use_bias": False, "use_conv_bias": True, "hidden_act": ("silu", "swish"), "dt_min": 0.001,
    "dt_max": 0.1, "dt_init_floor": ANY,
}  # fmt: skip
RULES: dict[str, Rule] = {
    "transformer": Rule(
        mixer="mh-attention",
        fields={"num_heads": "n_heads", "num_kv_heads": "n_kv_heads"},
        derive=_attention,
        reads=("qkv_bias", "rope_theta", "window_size"),
        only={"qk_norm": False, "norm_eps": ANY, "_width": ANY},
    ),
    "linear_attn": Rule(
        mixer="mh-linear-attention",
        fields={"num_heads": "n_heads"},
        derive=_linear_attn,
        reads=("feature_map", "norm_eps", "_width"),
        only={
            "expand_k": 1,
            "expand_v": 1,
            "num_kv_heads": None,
            "tie_feature_map_qk": False,
            "norm_q": False,
            "norm_k": False,
            "norm_feature_map": False,
        },
    ),
    "gla": Rule(
        mixer="mh-gated-linear-attention",
        fields={
            "num_heads": "n_heads",
            "expand_k": "expand_key",
            "expand_v": "expand_value",
            "use_output_gate": "use_gate",
            "norm_eps": "norm_eps",
        },
        only={
            "num_kv_heads": None,
            "feature_map": None,
            "use_short_conv": False,
            "conv_size": ANY,
            "clamp_min": None,
            "use_gk": True,
            "use_gv": False,
            "_width": ANY,
        },
    ),
    "retnet": Rule(
        mixer="retention",
        fields={
            "num_heads": "n_heads",
            "expand_v": "expand_value",
            "use_output_gate": "use_gate",
            "norm_eps": "norm_eps",
        },
        derive=lambda settings: {"output_norm": "rms"},
        only={
            "expand_k": 1,
            "num_kv_heads": None,
            "feature_map": None,
            "use_short_conv": False,
            "conv_size": ANY,
            "_width": ANY,
        },
    ),
    "delta_net": Rule(
        mixer="deltanet",
        fields={
            "num_heads": "n_heads",
            "expand_k": "expand_key",
            "expand_v": "expand_value",
            "use_gate": "use_gate",
            "use_beta": "use_beta",
            "allow_neg_eigval": "allow_neg_eigval",
            "qk_norm": "qk_norm",
            "qk_activation": "qk_activation",
            "norm_eps": "norm_eps",
        },
        derive=_conv,
        reads=("use_short_conv", "conv_size"),
        only={"use_output_norm": True, "_width": ANY},
    ),
    "gated_deltanet": Rule(
        mixer="gated-deltanet",
        fields={
            "num_heads": "n_heads",
            "use_gate": "use_gate",
            "allow_neg_eigval": "allow_neg_eigval",
            "norm_eps": "norm_eps",
        },
        derive=_gated_deltanet,
        reads=("head_dim", "expand_v", "use_short_conv", "conv_size", "_width"),
        only={"num_v_heads": None, "output_gate_activation": ("swish", "silu")},
    ),
    "rwkv6": Rule(
        mixer="rwkv6",
        fields={"proj_low_rank_dim": "blend_rank", "gate_low_rank_dim": "decay_rank"},
        derive=_rwkv6,
        reads=("num_heads", "norm_eps", "_width"),
        only={"expand_k": 1, "expand_v": 1, "norm_first": ANY, "norm_bias": ANY},
    ),
    "mamba": Rule(
        mixer="mamba",
        fields=_SSM_FIELDS,
        derive=_mamba,
        reads=("dt_rank", "intermediate_size", "_width"),
        only={**_SSM_ONLY, "dt_scale": 1, "dt_init_scheme": "random", "norm_eps": ANY},
    ),
    "mamba2": Rule(
        mixer="mamba2",
        fields={
            **_SSM_FIELDS,
            "head_dim": "head_dim",
            "n_groups": "n_groups",
            "norm_eps": "norm_eps",
        },
        derive=_mamba2,
        reads=("num_heads", "_width"),
        only={
            **_SSM_ONLY,
            "rmsnorm": True,
            "norm_before_gate": False,
            "D_has_hdim": False,
            "dt_limit": ([0.0, math.inf], (0.0, math.inf)),
            "A_init_range": ([1, 16], (1, 16)),
            "conv_init": None,
        },
    ),
}
ABSENT = {
    "rwkv7": "its layers also read the first layer's values; the preset RWKV7 has layers without",
    "gated_deltaproduct": "gated_deltanet comes closest",
    "kda": "gated_deltanet comes closest",
    "hgrn": "gla comes closest",
    "hgrn2": "gla comes closest",
    "gsa": "gla comes closest",
    "abc": "gla comes closest",
    "lightnet": "gla comes closest",
    "samba": "write its layers as mamba, swiglu, mh-sliding-attention, swiglu",
    "nsa": "transformer with window_size comes closest",
    "bitnet": "its weights are ternary; transformer comes closest",
}
