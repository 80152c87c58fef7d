"""The table of mixers: a name, the specification behind it, and the settings of that name.

To add a mixer: its file, one line here, one row in the shared checks (`tests/mixers/small.py`).
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_type_hints

from manticore.config.errors import did_you_mean
from manticore.mixers.interface import MixerSpec

_ROOM = "manticore.mixers"
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", type(None): "none"}

# Name -> (module:class, settings that the name stands for). The plain attention names have one
# head and the `mh-` names many, as in Poli et al., 2024 (arXiv:2403.17844).
TABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "attention": ("attention:AttentionSpec", {"n_heads": 1}),
    "mh-attention": ("attention:AttentionSpec", {"n_heads": 16}),
    "sliding-attention": ("attention:AttentionSpec", {"n_heads": 1, "window": 33}),
    "mh-sliding-attention": ("attention:AttentionSpec", {"n_heads": 16, "window": 33}),
    "linear-attention": ("linear_attention:LinearAttentionSpec", {"n_heads": 1}),
    "mh-linear-attention": ("linear_attention:LinearAttentionSpec", {"n_heads": 16}),
    "gated-linear-attention": ("gated_linear_attention:GatedLinearAttentionSpec", {"n_heads": 1}),
    "mh-gated-linear-attention": (
        "gated_linear_attention:GatedLinearAttentionSpec",
        {"n_heads": 8},
    ),
    "retention": ("retention:RetentionSpec", {"n_heads": 8}),
    "deltanet": ("deltanet:DeltaNetSpec", {"n_heads": 8}),
    "gated-deltanet": ("gated_deltanet:GatedDeltaNetSpec", {"n_heads": 8}),
    "gated-conv": ("gated_conv:GatedConvSpec", {}),
    "hyena": ("hyena:HyenaSpec", {}),
    "mh-hyena": ("multi_head_hyena:MultiHeadHyenaSpec", {}),
    "hyena-experts": ("hyena_experts:HyenaExpertsSpec", {}),
    "mamba": ("mamba:MambaSpec", {}),
    "normed-mamba": ("normed_mamba:NormedMambaSpec", {}),
    "mamba2": ("mamba2:Mamba2Spec", {}),
    "attention-mamba2": ("attention_mamba2:AttentionMamba2Spec", {}),
    "rwkv5": ("rwkv5:RWKV5Spec", {}),
    "rwkv6": ("rwkv6:RWKV6Spec", {}),
    "rwkv7": ("rwkv7:RWKV7Spec", {}),
    "mlp": ("mlp:MLPSpec", {}),
    "swiglu": ("swiglu:SwiGLUSpec", {}),
    "moe-mlp": ("moe_mlp:MoEMLPSpec", {}),
    "rwkv5-channel": ("rwkv_channel:RWKVChannelSpec", {"version": 5}),
    "rwkv6-channel": ("rwkv_channel:RWKVChannelSpec", {"version": 6}),
    "rwkv7-channel": ("rwkv_channel:RWKVChannelSpec", {"version": 7}),
}


def mixer_spec(name: str, **settings: Any) -> MixerSpec:
    """The specification of a named mixer, `settings` over those that the name stands for.

    Raises:
        ValueError: unknown name or setting (with the closest one), or settings that contradict.
    """
    if name not in TABLE:
        raise ValueError(
            f"Unknown mixer {name!r}.{did_you_mean(name, TABLE)} Known: {_list(TABLE)}."
        )
    spec_class = _load(TABLE[name][0])
    fields = {field.name for field in dataclasses.fields(spec_class)}
    for key in settings:
        if key not in fields:
            raise ValueError(
                f"Mixer {name!r} has no setting {key!r}.{did_you_mean(key, fields)} "
                f"Its settings: {_list(fields)}."
            )
    check_kinds(name, spec_class, settings)
    if settings.get("d_model", 1) < 1:
        raise ValueError(f"d_model={settings['d_model']}: a width is at least 1.")
    return spec_class(**{**TABLE[name][1], **settings})


def check_kinds(name: str, spec_class: type[MixerSpec], settings: Mapping[str, Any]) -> None:
    """Raise where a setting of a mixer is no value of its field's type."""
    hints = get_type_hints(spec_class)
    for key, value in settings.items():
        _check_kind(name, key, value, hints[key])


def _check_kind(name: str, key: str, value: Any, hint: Any) -> None:
    """Refuse a word for a number, and a fraction for a whole one."""
    kinds = [kind for kind in get_args(hint) or (hint,) if kind in _KINDS]
    if not kinds:
        return  # a word out of several: its class knows them
    # To Python a truth value is a number, and a whole number is none with a point.
    allowed = (int, *kinds) if float in kinds else tuple(kinds)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(_KINDS[kind] for kind in kinds)
        raise ValueError(f"Mixer {name!r}: {key}={value!r} is not {wanted}.")


def _load(place: str) -> type[MixerSpec]:
    module, _, attribute = place.partition(":")
    loaded: type[MixerSpec] = getattr(importlib.import_module(f"{_ROOM}.{module}"), attribute)
    return loaded


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
