"""The weights of a model built from mixers as those of flash-linear-attention (fla), and back.

Every tensor is accounted for in both directions; `fla_places` says where each one lies.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from manticore.models.configuration_mixer_lm import MixerLMConfig
from manticore.models.fla_places import GATED_NORM, Place, place_of

Tensors = Mapping[str, Tensor]
_HEAD, _TABLE = "lm_head.weight", "model.embed_tokens.weight"


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
        if config.tie_word_embeddings and name == _HEAD:
            continue
        place = place_of(name, specs)
        found |= zip(place.names, place.give(tensor), strict=True)
        if place.zeros is not None:
            found[place.zeros] = tensor.new_zeros(len(tensor))
    return {name: tensor.contiguous() for name, tensor in found.items()}


def tensors_from_fla(tensors: Tensors, wanted: Tensors, config: MixerLMConfig) -> dict[str, Tensor]:
    """The weights of a model of fla under our names.

    Args:
        tensors: all tensors of its files.
        wanted: state dict of the `MixerForCausalLM` that `config` gives, for names and shapes.
        config: what `config_from_fla` gives.

    Raises:
        ValueError: a tensor is missing, is left over, or has no counterpart.
    """
    is_tied, specs = config.tie_word_embeddings, config.specs()
    left, found = _without_first_norm(tensors, config), {}
    if is_tied:
        left.pop(_HEAD, None)  # files differ in listing a tied head
    for name, ours in wanted.items():
        if is_tied and name == _HEAD:
            continue
        found[name] = _take(left, place_of(name, specs), ours)
        if found[name].shape != ours.shape:
            raise ValueError(
                f"{name} has the shape {tuple(found[name].shape)} in the files and "
                f"{tuple(ours.shape)} by their config.json. Correct config.json."
            )
    if left:
        raise ValueError(
            f"The weights have {len(left)} tensors that their config.json does not name (first: "
            f"{min(left)}). Correct config.json, or fetch the model again."
        )
    return found | ({_HEAD: found[_TABLE]} if is_tied else {})


def _take(left: dict[str, Tensor], place: Place, ours: Tensor) -> Tensor:
    parts = []
    for name in place.names:
        apart = name.replace(GATED_NORM, "g_norm.weight")
        if name not in left and name.endswith("norm.bias"):  # norm_bias: false
            return torch.zeros_like(ours)
        if name not in left and apart not in left:
            raise ValueError(
                f"The weights lack {name}, which their config.json asks for. Correct config.json, "
                "or fetch the model again."
            )
        parts.append(left.pop(name if name in left else apart))
    if place.zeros is not None and bool(left.pop(place.zeros, torch.zeros(1)).any()):
        raise ValueError(f"{place.zeros} is not zero, and our feature map has no bias.")
    return place.take(parts)


def _without_first_norm(tensors: Tensors, config: MixerLMConfig) -> dict[str, Tensor]:
    """All tensors; RWKV's norm right behind the table of tokens is folded into its rows."""
    left, names = dict(tensors), [f"model.layers.0.pre_norm.{leaf}" for leaf in ("weight", "bias")]
    weight, bias = (left.pop(name, None) for name in names)
    if weight is not None:
        if config.tie_word_embeddings:
            raise ValueError(
                "These weights have a norm behind the table of tokens, which ours folds into the "
                "table, and the table is the head, too. Untie the head in fla and save it again."
            )
        table = left["model.embeddings.weight"]
        rows = F.layer_norm(table, weight.shape, weight, bias, config.norm_eps)
        left["model.embeddings.weight"] = rows
    return left
