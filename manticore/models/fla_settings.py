"""What flash-linear-attention (fla) takes where nothing is said, and what follows from its keys.

For keys of fla that do not stand for one of our settings alone; those that do are in `fla_rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from manticore.mixers.feature_maps import MapName, num_features
from manticore.models.foreign_layers import Settings, check_value

LIBRARY = "flash-linear-attention"


def attention(settings: Settings) -> dict[str, Any]:
    """Biases, rotary base and window."""
    base = settings.get("rope_theta", 10000.0)
    ours: dict[str, Any] = {"qkv_bias": bool(settings.get("qkv_bias", False)), "output_bias": False}
    ours |= {"rotary_fraction": 0.0} if base is None else {"rotary_base": float(base)}
    if settings.get("window_size") is not None:
        ours["window"] = int(settings["window_size"])
    return ours


def gated_deltanet(settings: Settings) -> dict[str, Any]:
    """Widths from the head size, which fla gives instead."""
    keys = settings["num_heads"] * settings["head_dim"] / settings["_width"]
    return {"expand_key": keys, "expand_value": keys * settings["expand_v"]} | conv(settings)


def conv(settings: Settings) -> dict[str, Any]:
    """Taps of the short convolution, 0 for none."""
    return {"conv_size": settings["conv_size"] if settings["use_short_conv"] else 0}


def linear_attn(settings: Settings) -> dict[str, Any]:
    """Feature map and epsilon; fla's norms what follows the sum."""
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


def rwkv6(settings: Settings) -> dict[str, Any]:
    """Head size, and the epsilon that fla shares with the blocks."""
    head_size = settings["_width"] // settings["num_heads"]
    return {"head_size": head_size, "norm_eps": settings["norm_eps"]}


def _rwkv6_channel(settings: Settings, width: int) -> dict[str, Any]:
    check_value(LIBRARY, "hidden_act", settings.get("hidden_act", "sqrelu"), "sqrelu")
    inner = settings.get("intermediate_size")
    if inner is None:
        ratio = settings.get("hidden_ratio")
        inner = 32 * -(-int(width * (3.5 if ratio is None else ratio)) // 32)
    return {"mixer": "rwkv6-channel", "expand": inner / width}


def mamba(settings: Settings) -> dict[str, Any]:
    """Rank of the time steps."""
    inner = settings["expand"] * settings["_width"]
    given = settings.get("intermediate_size", inner)
    check_value(LIBRARY, "intermediate_size", given, inner)
    rank = settings["dt_rank"]
    return {"dt_rank": None if rank == "auto" else rank}


def mamba2(settings: Settings) -> dict[str, Any]:
    """Nothing: the number of heads follows from their size."""
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
