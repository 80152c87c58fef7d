"""Which layers of flash-linear-attention (fla) are ours: a rule for each of its models.

`imports_fla` reads configurations by these rules, `exports_fla` writes them by the same.
"""

from __future__ import annotations

import math

from manticore.models import fla_settings
from manticore.models.foreign_layers import ANY, Rule

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
        derive=fla_settings.attention,
        reads=("qkv_bias", "rope_theta", "window_size"),
        only={"qk_norm": False, "norm_eps": ANY, "_width": ANY},
    ),
    "linear_attn": Rule(
        mixer="mh-linear-attention",
        fields={"num_heads": "n_heads"},
        derive=fla_settings.linear_attn,
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
        derive=fla_settings.conv,
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
        derive=fla_settings.gated_deltanet,
        reads=("head_dim", "expand_v", "use_short_conv", "conv_size", "_width"),
        only={"num_v_heads": None, "output_gate_activation": ("swish", "silu")},
    ),
    "rwkv6": Rule(
        mixer="rwkv6",
        fields={"proj_low_rank_dim": "blend_rank", "gate_low_rank_dim": "decay_rank"},
        derive=fla_settings.rwkv6,
        reads=("num_heads", "norm_eps", "_width"),
        only={"expand_k": 1, "expand_v": 1, "norm_first": ANY, "norm_bias": ANY},
    ),
    "mamba": Rule(
        mixer="mamba",
        fields=_SSM_FIELDS,
        derive=fla_settings.mamba,
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
        derive=fla_settings.mamba2,
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
