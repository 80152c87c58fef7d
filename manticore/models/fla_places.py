"""Where each tensor of a model built from mixers lies in a model of flash-linear-attention (fla).

Names correspond one to one, but for these: fla filters queries, keys and values by three
convolutions where we have one, Hedgehog's map carries a factor of two and a bias there, and RWKV-6
keeps its five blends in another order.

    ours    model.layers.2i.mixer.q.weight    model.layers.(2i + 1).mixer.gate.weight
    fla     model.layers.i.attn.q_proj.weight         model.layers.i.mlp.gate_proj.weight
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manticore.mixers.attention import AttentionSpec
from manticore.mixers.deltanet import DeltaNetSpec
from manticore.mixers.gated_deltanet import GatedDeltaNetSpec
from manticore.mixers.gated_linear_attention import GatedLinearAttentionSpec
from manticore.mixers.interface import MixerSpec
from manticore.mixers.linear_attention import LinearAttentionSpec
from manticore.mixers.mamba import MambaSpec
from manticore.mixers.mamba2 import Mamba2Spec
from manticore.mixers.retention import RetentionSpec
from manticore.mixers.rwkv6 import RWKV6Spec

KINDS: dict[type[MixerSpec], str] = {
    AttentionSpec: "transformer",
    LinearAttentionSpec: "linear_attn",
    GatedLinearAttentionSpec: "gla",
    RetentionSpec: "retnet",
    DeltaNetSpec: "delta_net",
    GatedDeltaNetSpec: "gated_deltanet",
    RWKV6Spec: "rwkv6",
    MambaSpec: "mamba",
    Mamba2Spec: "mamba2",
}
"""Our token mixer -> fla's model of it."""
BARE = ("mamba", "mamba2")
"""Models whose blocks have no channel mixer."""
GATED_NORM = "g_norm_swish_gate.weight"
"""What `g_norm.weight` is called where norm and gate are computed together."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one of our tensors lies in theirs."""

    names: tuple[str, ...]
    """Their tensors."""
    give: Callable[[Tensor], Sequence[Tensor]] = lambda ours: (ours,)
    """Theirs from ours."""
    take: Callable[[Sequence[Tensor]], Tensor] = lambda theirs: theirs[0]
    """Ours from theirs."""
    zeros: str | None = None
    """A bias beside it that has to be zero: we have none."""


def place_of(name: str, specs: Sequence[MixerSpec]) -> Place:
    """The place of a tensor in the state dict of a `MixerForCausalLM` with these layers.

    Raises:
        ValueError: it has none.
    """
    bare = any(KINDS.get(type(spec)) in BARE for spec in specs)
    if name in _STEM:
        return Place(names=((_BARE_STEM if bare else _STEM)[name],))
    _, _, rest = name.partition("model.layers.")
    number, _, local = rest.partition(".")
    if number.isdigit() and int(number) < len(specs):
        spec = specs[int(number)]
        block = int(number) if bare else int(number) // 2
        prefix = f"backbone.layers.{block}." if bare else f"model.layers.{block}."
        place = _layer_place(local, spec, prefix, _is_rwkv(specs))
        if place is not None:
            return place
    raise ValueError(f"{name} has no place in a model of flash-linear-attention.")


def _layer_place(local: str, spec: MixerSpec, prefix: str, is_rwkv: bool) -> Place | None:
    """The place of a tensor within a layer."""
    if spec.kind == "channel":
        theirs = (_RWKV_CHANNEL if is_rwkv else _CHANNEL).get(local)
        return None if theirs is None else Place(names=(prefix + theirs,))
    if KINDS[type(spec)] in BARE:
        norm, inside = "norm", "mixer."
    else:
        norm, inside = "attn_norm", "attn."
    if local.startswith("norm."):
        return Place(names=(f"{prefix}{norm}.{local.removeprefix('norm.')}",))
    return _token_place(local.removeprefix("mixer."), spec, prefix + inside)


def _token_place(name: str, spec: MixerSpec, prefix: str) -> Place | None:
    if name == "conv.weight":
        return _convolution(spec, prefix)
    if name in ("q_map.weight", "k_map.weight"):
        layer = f"{prefix}feature_map_{name[0]}.layer"
        return Place(
            names=(f"{layer}.weight",),
            give=lambda ours: (ours / 2,),
            take=lambda theirs: theirs[0] * 2,
            zeros=f"{layer}.bias",
        )
    if isinstance(spec, RWKV6Spec) and name in ("blends", "blend_down.weight", "blend_up", "bonus"):
        return _rwkv6(name, spec, prefix)
    theirs = _TOKEN[KINDS[type(spec)]].get(name)
    if theirs == "g_norm.weight" and getattr(spec, "use_gate", False):
        theirs = GATED_NORM
    return None if theirs is None else Place(names=(prefix + theirs,))


def _convolution(spec: MixerSpec, prefix: str) -> Place:
    """(channels, taps) here; there (channels, 1, taps), and in three parts for a delta rule."""
    if not isinstance(spec, DeltaNetSpec):
        return Place(
            names=(f"{prefix}conv1d.weight",),
            give=lambda ours: (ours.unsqueeze(1),),
            take=lambda theirs: theirs[0].squeeze(1),
        )
    rows = [spec.key_width, spec.key_width, spec.value_width]
    return Place(
        names=tuple(f"{prefix}{part}_conv1d.weight" for part in "qkv"),
        give=lambda ours: ours.unsqueeze(1).split(rows),
        take=lambda theirs: torch.cat(list(theirs)).squeeze(1),
    )


_THERE, _BACK = [3, 0, 1, 2, 4], [1, 2, 3, 0, 4]
"""Ours in the order of theirs, and theirs in the order of ours: w k v r g here, r w k v g there."""


def _rwkv6(name: str, spec: RWKV6Spec, prefix: str) -> Place:
    if name == "bonus":
        return Place(
            names=(f"{prefix}bonus",),
            give=lambda ours: (ours.unflatten(0, (-1, spec.head_size)),),
            take=lambda theirs: theirs[0].flatten(),
        )
    if name == "blends":
        return Place(
            names=(f"{prefix}x_bias",),
            give=lambda ours: (ours[_THERE],),
            take=lambda theirs: theirs[0][_BACK],
        )
    if name == "blend_down.weight":  # (5 ranks, D) in both
        return Place(
            names=(f"{prefix}x_proj.0.linear.weight",),
            give=lambda ours: (ours.unflatten(0, (5, -1))[_THERE].flatten(0, 1),),
            take=lambda theirs: theirs[0].unflatten(0, (5, -1))[_BACK].flatten(0, 1),
        )
    return Place(  # (5, rank, D) here, (D, 5 ranks) there
        names=(f"{prefix}x_proj.2.weight",),
        give=lambda ours: (ours[_THERE].permute(2, 0, 1).flatten(1),),
        take=lambda theirs: theirs[0].unflatten(1, (5, -1)).permute(1, 2, 0)[_BACK],
    )


def _is_rwkv(specs: Sequence[MixerSpec]) -> bool:
    return any(isinstance(spec, RWKV6Spec) for spec in specs)


_STEM = {
    "model.embed_tokens.weight": "model.embeddings.weight",
    "model.norm.weight": "model.norm.weight",
    "model.norm.bias": "model.norm.bias",
    "lm_head.weight": "lm_head.weight",
}
_BARE_STEM = {
    **_STEM,
    "model.embed_tokens.weight": "backbone.embeddings.weight",
    "model.norm.weight": "backbone.norm_f.weight",
}
_CHANNEL = {
    "norm.weight": "mlp_norm.weight",
    "mixer.gate.weight": "mlp.gate_proj.weight",
    "mixer.up.weight": "mlp.up_proj.weight",
    "mixer.down.weight": "mlp.down_proj.weight",
}
_RWKV_CHANNEL = {
    "norm.weight": "ffn_norm.weight",
    "norm.bias": "ffn_norm.bias",
    "mixer.key.weight": "ffn.key.linear.weight",
    "mixer.blend_key": "ffn.key.mu",
    "mixer.value.weight": "ffn.value.weight",
    "mixer.receptance.weight": "ffn.receptance.linear.weight",
    "mixer.blend_receptance": "ffn.receptance.mu",
}
_MAPS = {
    f"{ours}.{leaf}": f"{theirs}_proj.{leaf}"
    for ours, theirs in {"q": "q", "k": "k", "v": "v", "output": "o", "gate": "g"}.items()
    for leaf in ("weight", "bias")
}
_FEATURES = {
    f"{side}_map.{ours}.{leaf}": f"feature_map_{side}.{theirs}.{leaf}"
    for side in ("q", "k")
    for ours, theirs in {"first": "layer1", "second": "layer2"}.items()
    for leaf in ("weight", "bias")
}
_DELTA = {**_MAPS, "beta.weight": "b_proj.weight", "norm_weight": "o_norm.weight"}
_STATE_SPACE = {
    "conv_bias": "conv1d.bias",
    "log_rate": "A_log",
    "skip": "D",
    "input.weight": "in_proj.weight",
    "output.weight": "out_proj.weight",
}
_TOKEN: dict[str, dict[str, str]] = {
    "transformer": _MAPS,
    "linear_attn": {**_MAPS, **_FEATURES, "norm.weight": "norm.weight"},
    "retnet": {**_MAPS, "norm.weight": "g_norm.weight"},
    "gla": {
        **_MAPS,
        "norm.weight": "g_norm.weight",
        "decay_down.weight": "gk_proj.0.weight",
        "decay_up.weight": "gk_proj.1.weight",
        "decay_up.bias": "gk_proj.1.bias",
    },
    "delta_net": _DELTA,
    "gated_deltanet": {
        **_DELTA,
        "decay.weight": "a_proj.weight",
        "log_rate": "A_log",
        "step_bias": "dt_bias",
    },
    "rwkv6": {
        "receptance.weight": "r_proj.linear.weight",
        "key.weight": "k_proj.linear.weight",
        "value.weight": "v_proj.linear.weight",
        "gate.weight": "g_proj.linear.weight",
        "output.weight": "o_proj.weight",
        "blend_of_blends": "x_proj.0.mu",
        "decay.down.weight": "w_proj.linear.lora.0.weight",
        "decay.up.weight": "w_proj.linear.lora.2.weight",
        "decay.bias": "w_proj.linear.lora.2.bias",
        "norm.weight": "g_norm.weight",
        "norm.bias": "g_norm.bias",
    },
    "mamba": {
        **_STATE_SPACE,
        "select.weight": "x_proj.weight",
        "time_step.weight": "dt_proj.weight",
        "step_bias": "dt_proj.bias",
    },
    "mamba2": {**_STATE_SPACE, "step_bias": "dt_bias", "norm_weight": "norm.weight"},
}
