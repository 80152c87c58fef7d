"""Run layers on one token without the base model around them.

A transformers base model builds a mask, a rotary table and an output object at every call. For one
new token that sees everything before it none of this depends on the range of layers: there is
nothing to mask, and one rotary table serves all ranges. `run_token` therefore calls the layers
themselves. Its naive twin is `pretrained.run_layers`, which takes every other case.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manticore.models.family import Family
from manticore.models.rotary_lengths import RowRotary, longrope_border
from manticore.models.stage_cache import StageCache
from manticore.models.supported import check_supported

# Of one query without a mask, these give the same numbers as with the mask of ones.
_MASKLESS_ATTENTION = ("eager", "sdpa")

Rotary = tuple[Tensor, Tensor]


def is_plain_token(hidden: Tensor, attention_mask: Tensor | None) -> bool:
    """Whether this forward pass is one new token per sequence, without padding or gradients.

    Args:
        hidden: (batch, seq, ...) or (batch, seq), whatever comes in.
        attention_mask: (batch, past + seq) or None.
    """
    if hidden.shape[1] != 1 or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    # Looking at the mask is free on a CPU; elsewhere it would wait for the device.
    return attention_mask is None or (
        attention_mask.device.type == "cpu" and bool(attention_mask.all())
    )


def takes_token(base: PreTrainedModel) -> bool:
    """Whether `run_token` knows how to call this model's layers."""
    family = check_supported(base.config)
    if family.layer_cache is None or getattr(base.config, "sliding_window", None):
        return False  # a window needs a mask once the cache is longer
    return family.is_recurrent or base.config._attn_implementation in _MASKLESS_ATTENTION


def rotary_table(base: PreTrainedModel, hidden: Tensor, position_ids: Tensor) -> Rotary | None:
    """Cosines and sines of these positions, the same for all layers; None: no rotary positions.

    Args:
        hidden: (batch, 1, d), for its dtype and device.
        position_ids: (batch, 1) or (1, 1).
    """
    family = check_supported(base.config)
    if family.rotary is None:
        return None
    rotary, border = getattr(base, family.rotary), longrope_border(base.config)
    if border is not None:
        rotary = RowRotary(rotary, border)
    table: Rotary = rotary(hidden, position_ids=position_ids)
    return table


def run_token(
    base: PreTrainedModel,
    hidden: Tensor,
    lo: int,
    hi: int,
    *,
    position_ids: Tensor,
    cache: StageCache,
    rotary: Rotary | None,
    final_norm: bool,
) -> Tensor:
    """Run layers `lo`..`hi - 1` on one unpadded token, and the final norm if `final_norm`.

    Args:
        hidden: (batch, 1, d).
        position_ids: (batch, 1) or (1, 1).
        cache: the view of these layers' cache; it is filled in place.
        rotary: what `rotary_table` gave for these positions.

    Returns:
        (batch, 1, d) in the dtype of `hidden`.
    """
    if lo == hi:
        return hidden
    family, dtype = check_supported(base.config), hidden.dtype
    arguments = _layer_arguments(family, position_ids, cache, rotary)
    for layer in list(getattr(base, family.layers)._modules.values())[lo:hi]:
        hidden = layer(hidden, **arguments)
    norm = getattr(base, family.final_norm) if final_norm else None
    if norm is not None:  # some OPT models end without one
        hidden = norm(hidden)
    return hidden.to(dtype)


def _layer_arguments(
    family: Family, position_ids: Tensor, cache: StageCache, rotary: Rotary | None
) -> dict[str, Any]:
    assert family.layer_cache is not None  # `takes_token`
    arguments: dict[str, Any] = {family.layer_cache: cache, "attention_mask": None}
    if not family.is_recurrent:
        arguments |= {"position_ids": position_ids, "use_cache": True}
    if rotary is not None:
        arguments["position_embeddings"] = rotary
    return arguments
