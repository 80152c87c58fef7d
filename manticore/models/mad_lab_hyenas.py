"""mad-lab's three Hyenas, whose long convolution has settings within its settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from manticore.models.foreign_layers import ANY, Rule, Settings, check_value


def _hyena(settings: Settings) -> dict[str, Any]:
    # Theirs repeats the channels of its input map; ours has as many repeats as it widens.
    groups = settings.get("inner_factor", 2)
    check_value("mad-lab", "proj_groups", settings.get("proj_groups", 4), groups)
    return {"groups": groups} | _hyena_filter(settings)


def _multi_head_hyena(settings: Settings) -> dict[str, Any]:
    heads = settings.get("num_heads", 1)
    within = settings.get("long_conv_cfg", {}).get("num_heads", heads)
    check_value("mad-lab", "long_conv_cfg.num_heads", within, heads)
    ours = {"n_heads": heads, "groups": settings.get("proj_groups", 4)}
    return ours | _hyena_filter(settings)


def _hyena_experts(settings: Settings) -> dict[str, Any]:
    experts = settings.get("num_experts", 8)
    width = settings.get("dim_inner", settings["dim"] // experts)
    check_value("mad-lab", "dim_inner * num_experts", width * experts, settings["dim"])
    return {"n_experts": experts} | _hyena_filter(settings)


def _hyena_filter(settings: Settings) -> dict[str, Any]:
    convolution = {"filter_cls": "rtf", **settings.get("long_conv_cfg", {})}
    network = convolution.get("filter_cfg", {})
    for given, allowed in ((convolution, _LONG_CONVOLUTION), (network, _FILTER)):
        for key, value in given.items():
            if key not in allowed:
                raise ValueError(
                    f"mad-lab's long_conv_cfg: the setting {key!r} (here {value!r}) has no "
                    "counterpart. Leave it out if its default is meant."
                )
            check_value("mad-lab", f"long_conv_cfg.{key}", value, allowed[key])
    return {"filter_width": network.get("order", 16)}


_LONG_CONVOLUTION = {"bias": True, "filter_cls": "implicit", "filter_cfg": ANY, "num_heads": ANY}
_FILTER = {
    "order": ANY, "emb_dim": 3, "depth_implicit": 2, "w": 1, "nested": False, "modulate": True,
    "normalized": False, "shift": 0, "fast_decay_pct": 0.3, "slow_decay_pct": 1.5, "target": 1e-2,
    "lr": ANY, "lr_pos_emb": ANY, "modulation_lr": 0, "wd": ANY,
}  # fmt: skip
"""Of the network that makes a filter. mad-lab never reads its learning rates."""


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
HYENAS = {
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
