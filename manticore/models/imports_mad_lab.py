"""Layers and tasks as athms/mad-lab names them, in its YAML files and in its registry, as ours.

Keys that do nothing in mad-lab (`nested`, `outer_mixing`, `num_blocks`, ...) are accepted and left
out. Layers whose computation we mend come with `compat` where `compat="mad-lab"` is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from manticore.models.foreign_layers import ANY, Rule, Settings, check_value, find_rule

LIBRARY = "mad-lab"
TASKS = (
    "in-context-recall",
    "noisy-in-context-recall",
    "fuzzy-in-context-recall",
    "memorization",
    "compression",
    "selective-copying",
)
_TASK_KEYS = {
    "vocab_size": "vocab_size",
    "seq_len": "seq_len",
    "num_train_examples": "num_train",
    "multi_query": "multi_query",
    "k_motif_size": "k_motif_size",
    "v_motif_size": "v_motif_size",
    "noise_vocab_size": "noise_vocab_size",
    "frac_noise": "frac_noise",
    "num_tokens_to_copy": "num_tokens_to_copy",
}


def layer_from_mad_lab(
    name: str, settings: Mapping[str, Any] | None = None, *, compat: str = "fixed"
) -> tuple[dict[str, Any], int]:
    """One layer of mad-lab as ours.

    Args:
        name: as in its registry and its file names, such as "mh-gated-linear-attention".
        settings: the content of its YAML file; None: its defaults.
        compat: "mad-lab" computes what the original computes where we mend it.

    Returns:
        The layer {"mixer": name, ...}, and its width d_model.
    """
    if compat not in ("fixed", "mad-lab"):
        raise ValueError(f"compat={compat!r} is not known. Known: fixed, mad-lab.")
    rule = find_rule(RULES, name, LIBRARY, ABSENT)
    if settings is None:
        layer, d_model = {"mixer": rule.mixer}, 128  # our names stand for its files
    else:
        d_model = int(settings.get("dim", 128))
        layer = rule.apply({"dim": d_model, **settings}, f"{LIBRARY}'s {name}")
    if compat == "mad-lab":
        layer |= MENDED.get(rule.mixer, {})
    return layer, d_model


def read_mad_lab_layer(
    path: str | os.PathLike[str], *, compat: str = "fixed"
) -> tuple[dict[str, Any], int]:
    """One of mad-lab's configs/layers/*.yml, named by its file."""
    return layer_from_mad_lab(Path(path).stem, _read(path), compat=compat)


def task_from_mad_lab(
    name: str, content: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """One task of mad-lab: the options of its baseline, and the changes one at a time.

    Args:
        name: as its file is named.
        content: of configs/tasks/<name>.yml: {"baseline": {...}, "changes": {key: [...]}}.

    Returns:
        Options by the names of `manticore.tasks.mad.make_data`, with `num_train` beside them.
    """
    if name not in TASKS:
        raise ValueError(f"{name!r} is no task of {LIBRARY}. Known: {', '.join(TASKS)}.")
    unknown = set(content) - {"baseline", "changes"}
    if unknown or "baseline" not in content:
        raise ValueError(
            f"{LIBRARY}'s {name}: a task has 'baseline' and 'changes', not {sorted(content)}."
        )
    baseline = {_task_key(name, key): value for key, value in content["baseline"].items()}
    changes = {
        _task_key(name, key): list(values) for key, values in content.get("changes", {}).items()
    }
    return baseline, changes


def read_mad_lab_task(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """One of mad-lab's configs/tasks/*.yml, named by its file."""
    return task_from_mad_lab(Path(path).stem, _read(path))


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{os.fspath(path)} holds no settings (a mapping of keys to values).")
    return content


def _task_key(name: str, key: str) -> str:
    if key not in _TASK_KEYS:
        raise ValueError(
            f"{LIBRARY}'s {name}: option {key!r} is not known. Known: {', '.join(_TASK_KEYS)}."
        )
    return _TASK_KEYS[key]


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


def _rwkv(settings: Settings) -> dict[str, Any]:
    check_value(LIBRARY, "dim_att", settings.get("dim_att", settings["dim"]), settings["dim"])
    return {}


def _rwkv_channel(settings: Settings) -> dict[str, Any]:
    inner = settings.get("dim_inner")
    return {} if inner is None else {"expand": inner / settings["dim"]}


def _mlp(settings: Settings) -> dict[str, Any]:
    inner = settings.get("dim_inner")
    return {} if inner is None else {"expand": inner / settings["dim"]}


def _swiglu(settings: Settings) -> dict[str, Any]:
    inner = settings.get("dim_inner")
    return {} if inner is None else {"inner_width": inner}


def _gated_deltanet(settings: Settings) -> dict[str, Any]:
    keys = settings.get("num_heads", 4) * settings.get("head_dim", 32) / settings["dim"]
    return {
        "n_heads": settings.get("num_heads", 4),
        "expand_key": keys,
        "expand_value": keys * settings.get("expand_v", 2),
        "conv_size": settings.get("conv_size", 4) if settings.get("use_short_conv", True) else 0,
    }


def _hyena(settings: Settings) -> dict[str, Any]:
    # Theirs repeats the channels of its input map; ours has as many repeats as it widens.
    groups = settings.get("inner_factor", 2)
    check_value(LIBRARY, "proj_groups", settings.get("proj_groups", 4), groups)
    return {"groups": groups} | _hyena_filter(settings)


def _multi_head_hyena(settings: Settings) -> dict[str, Any]:
    heads = settings.get("num_heads", 1)
    within = settings.get("long_conv_cfg", {}).get("num_heads", heads)
    check_value(LIBRARY, "long_conv_cfg.num_heads", within, heads)
    ours = {"n_heads": heads, "groups": settings.get("proj_groups", 4)}
    return ours | _hyena_filter(settings)


def _hyena_experts(settings: Settings) -> dict[str, Any]:
    experts = settings.get("num_experts", 8)
    width = settings.get("dim_inner", settings["dim"] // experts)
    check_value(LIBRARY, "dim_inner * num_experts", width * experts, settings["dim"])
    return {"n_experts": experts} | _hyena_filter(settings)


_LONG_CONVOLUTION = {"bias": True, "filter_cls": "implicit", "filter_cfg": ANY, "num_heads": ANY}
_FILTER = {
    "order": ANY, "emb_dim": 3, "depth_implicit": 2, "w": 1, "nested": False, "modulate": True,
    "normalized": False, "shift": 0, "fast_decay_pct": 0.3, "slow_decay_pct": 1.5, "target": 1e-2,
    "lr": ANY, "lr_pos_emb": ANY, "modulation_lr": 0, "wd": ANY,
}  # fmt: skip
"""Of a filter's settings; its rates of learning are never read."""


def _hyena_filter(settings: Settings) -> dict[str, Any]:
    convolution = {"filter_cls": "rtf", **settings.get("long_conv_cfg", {})}
    network = convolution.get("filter_cfg", {})
    for given, allowed in ((convolution, _LONG_CONVOLUTION), (network, _FILTER)):
        for key, value in given.items():
            if key not in allowed:
                raise ValueError(
                    f"{LIBRARY}'s long_conv_cfg: the setting {key!r} (here {value!r}) has no "
                    "counterpart. Leave it out if its default is meant."
                )
            check_value(LIBRARY, f"long_conv_cfg.{key}", value, allowed[key])
    return {"filter_width": network.get("order", 16)}


def _hyena_rule(
    name: str,
    derive: Callable[[Settings], dict[str, Any]],
    reads: tuple[str, ...],
    only: dict[str, Any],
    fields: dict[str, str] | None = None,
) -> Rule:
    return Rule(
        mixer=name,
        fields={"short_filter_order": "conv_size", "max_length": "max_length", **(fields or {})},
        derive=derive,
        reads=("dim", "long_conv_cfg", *reads),
        only={"order": 2, "dropout": 0, "fused_bias_fc": ANY, "post_order_ffn": ANY, **only},
    )


_UNUSED = {"num_blocks": ANY, "outer_mixing": ANY, "activation": ANY, "nested": ANY}
_HYENAS = {
    "hyena": _hyena_rule(
        "hyena", _hyena, ("inner_factor", "proj_groups"), {"num_heads": 1, **_UNUSED}
    ),
    "mh-hyena": _hyena_rule(
        "mh-hyena", _multi_head_hyena, ("num_heads", "proj_groups"), {"inner_factor": 1, **_UNUSED}
    ),
    "hyena-experts": _hyena_rule(
        "hyena-experts",
        _hyena_experts,
        ("dim_inner", "num_experts"),
        {
            "num_heads": 1, "inner_factor": 1, "num_blocks": 1, "proj_groups": ANY, "nested": ANY,
            "outer_mixing": False, "post_order_ffn": False, "activation": ("id", None),
        },
        {"active_experts": "top_k"},
    ),
}  # fmt: skip


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


def _rwkv_time(name: str) -> Rule:
    return Rule(
        mixer=name,
        fields={"head_dim": "head_size"},
        derive=_rwkv,
        reads=("dim", "dim_att"),
        only={"max_length": ANY, "head_dim_divisor": 8},
    )


def _rwkv_channel_rule(name: str) -> Rule:
    return Rule(mixer=name, derive=_rwkv_channel, reads=("dim", "dim_inner"), only={})


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

RULES: dict[str, Rule] = {
    **{name: _attention_rule(name) for name in ("attention", "mh-attention")},
    **{name: _attention_rule(name) for name in ("sliding-attention", "mh-sliding-attention")},
    **{name: _linear_attention(name) for name in ("linear-attention", "mh-linear-attention")},
    "gated-linear-attention": _gated_linear_attention("gated-linear-attention"),
    "mh-gated-linear-attention": _gated_linear_attention("mh-gated-linear-attention"),
    "rwkv5-time-mixer": _rwkv_time("rwkv5"),
    "rwkv6-time-mixer": _rwkv_time("rwkv6"),
    "rwkv5-channel-mixer": _rwkv_channel_rule("rwkv5-channel"),
    "rwkv6-channel-mixer": _rwkv_channel_rule("rwkv6-channel"),
    "gated-delta-net": _GATED_DELTANET,
    **_HYENAS,
    "mamba": _MAMBA,
    "mlp": Rule(
        mixer="mlp",
        derive=_mlp,
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
ABSENT = {"bs-gated-delta-net": "a later addition to it; gated-delta-net comes closest"}
# What compat="mad-lab" sets, where the original computes something that we mend. Mamba is not here:
# the bias of its time steps is the original's autoencoder's doing, so it is that of ours.
MENDED: dict[str, dict[str, Any]] = {
    "linear-attention": {"feature_map": "quadratic", "compat": "mad-lab"},
    "mh-linear-attention": {"feature_map": "quadratic", "compat": "mad-lab"},
    **{name: {"compat": "mad-lab"} for name in ("moe-mlp", *_HYENAS)},
}
