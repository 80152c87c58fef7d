"""mad-lab's layers, one rule each: what its settings are called here, and which have no effect."""

from __future__ import annotations

from typing import Any

from manticore.models.foreign_layers import ANY, Rule, Settings, check_value
from manticore.models.mad_lab_hyenas import HYENAS


def _attention(settings: Settings) -> dict[str, Any]:
    heads = int(settings.get("n_heads", 1))
    rotated = settings.get("rotary_emb_dim", 0) or 0
    window = tuple(settings.get("window_size", (-1, -1)))
    ours: dict[str, Any] = {
        "n_heads": heads,
        "rotary_fraction": rotated * heads / settings["dim"],
    }
    # Theirs counts the positions before one's own; behind it, a causal layer sees none.
    if window[0] >= 0:
        ours["window"] = window[0] + 1
    return ours


def _attention_rule(name: str) -> Rule:
    return Rule(
        mixer=name,
        derive=_attention,
        reads=("dim", "n_heads", "rotary_emb_dim", "window_size"),
        only={"causal": True, "dropout": 0, "use_flash_attn": ANY, "bias": True},
    )


def _linear_attention(name: str) -> Rule:
    return Rule(
        mixer=name,
        fields={"num_heads": "n_heads"},
        only={
            "dim": ANY,
            "expand_k": 1,
            "expand_v": 1,
            # Ours is positive; `compat` brings theirs back.
            "feature_map": "elementwise_product",
            "parallel_implementation": ANY,
            "tie_feature_map_qk": False,
            "norm_q": False,
            "norm_k": False,
        },
    )


def _gated_linear_attention(name: str) -> Rule:
    return Rule(
        mixer=name,
        fields={
            "num_heads": "n_heads",
            "expand_k": "expand_key",
            "expand_v": "expand_value",
            "gate_logit_normalizer": "gate_normalizer",
            "gate_low_rank_dim": "gate_rank",
            "layernorm_eps": "norm_eps",
        },
        only={"dim": ANY, "gate_fn": "swish", "mode": ANY, "fuse_norm": ANY},
    )


def _rwkv(settings: Settings) -> dict[str, Any]:
    check_value("mad-lab", "dim_att", settings.get("dim_att", settings["dim"]), settings["dim"])
    return {}


def _rwkv_time(name: str) -> Rule:
    return Rule(
        mixer=name,
        fields={"head_dim": "head_size"},
        derive=_rwkv,
        reads=("dim", "dim_att"),
        only={"max_length": ANY, "head_dim_divisor": 8},
    )


def _expand(settings: Settings) -> dict[str, Any]:
    inner = settings.get("dim_inner")
    return {} if inner is None else {"expand": inner / settings["dim"]}


def _rwkv_channel(name: str) -> Rule:
    return Rule(mixer=name, derive=_expand, reads=("dim", "dim_inner"), only={})


def _gated_deltanet(settings: Settings) -> dict[str, Any]:
    keys = settings.get("num_heads", 4) * settings.get("head_dim", 32) / settings["dim"]
    return {
        "n_heads": settings.get("num_heads", 4),
        "expand_key": keys,
        "expand_value": keys * settings.get("expand_v", 2),
        "conv_size": settings.get("conv_size", 4) if settings.get("use_short_conv", True) else 0,
    }


_GATED_DELTANET = Rule(
    mixer="gated-deltanet",
    fields={
        "use_gate": "use_gate",
        "allow_neg_eigval": "allow_neg_eigval",
        "norm_eps": "norm_eps",
    },
    derive=_gated_deltanet,
    reads=("dim", "num_heads", "head_dim", "expand_v", "use_short_conv", "conv_size"),
    only={"mode": ANY, "conv_bias": False},
)


def _mamba(settings: Settings) -> dict[str, Any]:
    rank = settings.get("dt_rank", "auto")
    return {"d_state": settings.get("d_state", 16), "dt_rank": None if rank == "auto" else rank}


_MAMBA = Rule(
    mixer="mamba",
    fields={"d_conv": "conv_size", "expand": "expand"},
    derive=_mamba,
    reads=("d_state", "dt_rank"),
    only={
        "dim": ANY,
        "dt_min": 0.001,
        "dt_max": 0.1,
        "dt_init": "random",
        "dt_scale": 1,
        "dt_init_floor": ANY,  # below dt_min it does nothing
        "conv_bias": True,
        "bias": False,
        "use_fast_path": ANY,
    },
)


def _swiglu(settings: Settings) -> dict[str, Any]:
    inner = settings.get("dim_inner")
    return {} if inner is None else {"inner_width": inner}


RULES: dict[str, Rule] = {
    **{name: _attention_rule(name) for name in ("attention", "mh-attention")},
    **{name: _attention_rule(name) for name in ("sliding-attention", "mh-sliding-attention")},
    **{name: _linear_attention(name) for name in ("linear-attention", "mh-linear-attention")},
    "gated-linear-attention": _gated_linear_attention("gated-linear-attention"),
    "mh-gated-linear-attention": _gated_linear_attention("mh-gated-linear-attention"),
    "rwkv5-time-mixer": _rwkv_time("rwkv5"),
    "rwkv6-time-mixer": _rwkv_time("rwkv6"),
    "rwkv5-channel-mixer": _rwkv_channel("rwkv5-channel"),
    "rwkv6-channel-mixer": _rwkv_channel("rwkv6-channel"),
    "gated-delta-net": _GATED_DELTANET,
    **HYENAS,
    "mamba": _MAMBA,
    "mlp": Rule(
        mixer="mlp",
        derive=_expand,
        reads=("dim", "dim_inner"),
        only={"drop_rate": 0, "bias": False},
    ),
    "swiglu": Rule(
        mixer="swiglu",
        derive=_swiglu,
        reads=("dim", "dim_inner"),
        only={"drop_rate": 0, "bias": False},
    ),
    "moe-mlp": Rule(
        mixer="moe-mlp",
        fields={"num_experts": "n_experts", "active_experts": "top_k", "dim_inner": "expert_width"},
        only={"dim": ANY, "bias": False},
    ),
}
