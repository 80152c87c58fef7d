"""The table of mixers: a name, the specification behind it, and the settings of that name.

To add a mixer: its file, one line here, one row in the shared checks (`tests/mixers/small.py`).
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Iterable
from typing import Any

from manticore.mixers.interface import MixerSpec

_ROOM = "manticore.mixers"

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
    "hyena": ("hyena:HyenaSpec", {}),
    "mh-hyena": ("multi_head_hyena:MultiHeadHyenaSpec", {}),
    "hyena-experts": ("hyena_experts:HyenaExpertsSpec", {}),
    "mamba": ("mamba:MambaSpec", {}),
    "mamba2": ("mamba2:Mamba2Spec", {}),
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
            f"Unknown mixer {name!r}.{_did_you_mean(name, TABLE)} Known: {_list(TABLE)}."
        )
    spec_class = _load(TABLE[name][0])
    fields = {field.name for field in dataclasses.fields(spec_class)}
    for key in settings:
        if key not in fields:
            raise ValueError(
                f"Mixer {name!r} has no setting {key!r}.{_did_you_mean(key, fields)} "
                f"Its settings: {_list(fields)}."
            )
    return spec_class(**{**TABLE[name][1], **settings})


def _load(place: str) -> type[MixerSpec]:
    module, _, attribute = place.partition(":")
    loaded: type[MixerSpec] = getattr(importlib.import_module(f"{_ROOM}.{module}"), attribute)
    return loaded


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
