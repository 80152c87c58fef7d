"""Where the weights of a model built from mixers lie in a model of flash-linear-attention (fla).

Names correspond one to one but for two things: fla filters queries, keys and values by three
convolutions where we have one, and Hedgehog's map carries a factor of two and a bias there.

    ours    model.layers.2i.mixer.q.weight    model.layers.(2i + 1).mixer.gate.weight
    fla     model.layers.i.attn.q_proj.weight         model.layers.i.mlp.gate_proj.weight
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from manticore.mixers.attention import AttentionSpec
from manticore.mixers.deltanet import DeltaNetSpec
from manticore.mixers.gated_deltanet import GatedDeltaNetSpec
from manticore.mixers.gated_linear_attention import GatedLinearAttentionSpec
from manticore.mixers.interface import MixerSpec
from manticore.mixers.linear_attention import LinearAttentionSpec
from manticore.mixers.retention import RetentionSpec
from manticore.models.configuration_mixer_lm import MixerLMConfig

Tensors = Mapping[str, Tensor]

KINDS: dict[type[MixerSpec], str] = {
    AttentionSpec: "transformer",
    LinearAttentionSpec: "linear_attn",
    GatedLinearAttentionSpec: "gla",
    RetentionSpec: "retnet",
    DeltaNetSpec: "delta_net",
    GatedDeltaNetSpec: "gated_deltanet",
}
"""Our token mixer -> fla's model of it."""
_STEM = {
    "model.embed_tokens.weight": "model.embeddings.weight",
    "model.norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_CHANNEL = {
    "norm.weight": "mlp_norm.weight",
    "mixer.gate.weight": "mlp.gate_proj.weight",
    "mixer.up.weight": "mlp.up_proj.weight",
    "mixer.down.weight": "mlp.down_proj.weight",
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
}
_GATED_NORM = "g_norm_swish_gate.weight"
"""What `g_norm.weight` is called where norm and gate are computed together."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one of our tensors lies in theirs."""

    names: tuple[str, ...]
    """Their tensors; several: our rows are theirs, one tensor after the other."""
    rows: tuple[int, ...] = ()
    """Rows of each, if there are several."""
    factor: float = 1.0
    """Ours is theirs times this."""
    zeros: str | None = None
    """A bias beside it that has to be zero: we have none."""


def tensors_to_fla(state: Tensors, config: MixerLMConfig) -> dict[str, Tensor]:
    """The weights of a model of ours under fla's names.

    Args:
        state: state dict of a `MixerForCausalLM`; of a tied head only the table is written.
        config: its config, whose layers fla has (`exports_fla` checks that).

    Raises:
        ValueError: a tensor that has no place there.
    """
    found: dict[str, Tensor] = {}
    specs = config.specs()
    for name, tensor in state.items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        place = _place(name, specs)
        parts = tensor.split(place.rows) if place.rows else (tensor,)
        for theirs, part in zip(place.names, parts, strict=True):
            part = part / place.factor
            found[theirs] = part.unsqueeze(1) if "_conv1d." in theirs else part
        if place.zeros is not None:
            found[place.zeros] = tensor.new_zeros(len(tensor))
    return {name: tensor.contiguous() for name, tensor in found.items()}


def tensors_from_fla(
    tensors: Tensors, wanted: list[str], config: MixerLMConfig
) -> dict[str, Tensor]:
    """The weights of a model of fla under our names.

    Args:
        tensors: all tensors of its files.
        wanted: names in the state dict of the `MixerForCausalLM` that `config` gives.
        config: what `config_from_fla` gives.

    Raises:
        ValueError: a tensor is missing, is left over, or has no counterpart.
    """
    left, found, specs = dict(tensors), {}, config.specs()
    if config.tie_word_embeddings:
        # Files differ in listing a tied head.
        left.pop("lm_head.weight", None)
    for name in wanted:
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        found[name] = _take(left, _place(name, specs))
    if left:
        raise ValueError(
            f"The weights have {len(left)} tensors that their config.json does not name (first: "
            f"{min(left)}). Correct config.json, or fetch the model again."
        )
    if config.tie_word_embeddings:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    return found


def _take(left: dict[str, Tensor], place: Place) -> Tensor:
    parts = []
    for name in place.names:
        alternative = name.replace(_GATED_NORM, "g_norm.weight")
        if name not in left and alternative not in left:
            raise ValueError(
                f"The weights lack {name}, which their config.json asks for. Correct config.json, "
                "or fetch the model again."
            )
        part = left.pop(name if name in left else alternative)
        parts.append(part.squeeze(1) if "_conv1d." in name else part)
    if place.zeros is not None and bool(left.pop(place.zeros, torch.zeros(1)).any()):
        raise ValueError(f"{place.zeros} is not zero, and our feature map has no bias.")
    return (parts[0] if len(parts) == 1 else torch.cat(parts)) * place.factor


def _place(name: str, specs: list[MixerSpec]) -> Place:
    """The place of a tensor of ours."""
    if name in _STEM:
        return Place(names=(_STEM[name],))
    _, _, rest = name.partition("model.layers.")
    number, _, local = rest.partition(".")
    if number.isdigit() and int(number) < len(specs):
        block, is_channel = divmod(int(number), 2)
        prefix = f"model.layers.{block}."
        if is_channel and local in _CHANNEL:
            return Place(names=(prefix + _CHANNEL[local],))
        if not is_channel and local == "norm.weight":
            return Place(names=(f"{prefix}attn_norm.weight",))
        own = local.removeprefix("mixer.")
        place = None if is_channel else _token_place(own, specs[int(number)], f"{prefix}attn.")
        if place is not None:
            return place
    raise ValueError(f"{name} has no place in a model of flash-linear-attention.")


def _token_place(name: str, spec: MixerSpec, prefix: str) -> Place | None:
    if name == "conv.weight" and isinstance(spec, DeltaNetSpec):
        return Place(
            names=tuple(f"{prefix}{part}_conv1d.weight" for part in "qkv"),
            rows=(spec.key_width, spec.key_width, spec.value_width),
        )
    if name in ("q_map.weight", "k_map.weight"):
        layer = f"{prefix}feature_map_{name[0]}.layer"
        return Place(names=(f"{layer}.weight",), factor=2.0, zeros=f"{layer}.bias")
    theirs = _TOKEN[KINDS[type(spec)]].get(name)
    if theirs == "g_norm.weight" and getattr(spec, "use_gate", False):
        theirs = _GATED_NORM
    return None if theirs is None else Place(names=(prefix + theirs,))
