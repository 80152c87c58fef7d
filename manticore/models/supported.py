"""Which models can be components: those of a family in the table, built as its row expects."""

from __future__ import annotations

import difflib
import math
from typing import Any

from transformers import PreTrainedConfig

from manticore.models.families import FAMILIES
from manticore.models.family import Family

WITHOUT_A_ROW = {
    "bloom": "a norm stands between its embeddings and its first layer, which belongs to no range "
    "of layers. Use a falcon with ALiBi (Falcon-RW), which has the same positions.",
    "recurrent_gemma": "its recurrent state lives in its modules instead of a cache, so that beam "
    "search and a second sequence would see the state of the first. For linear recurrences "
    "beside local attention use a hybrid of mamba2 or qwen3_next with gemma2.",
    "xlstm": "it keeps a cache of its own kind that no other component can share, and outside of "
    "training runs long sequences in pieces without gradients. Use qwen3_next, whose memory is a "
    "matrix as well.",
    "zamba2": "its shared attention block reads the embeddings again at many depths, so that its "
    "layers cannot be cut into ranges that hand on one stream. Use bamba, nemotron_h or "
    "granitemoehybrid, which have the same Mamba-2 layers.",
}
"""Families of transformers that we know and refuse, and why."""


class UnsupportedFamilyError(ValueError):
    """A model whose family has no row in the table, or that is not built as its row expects."""


def check_supported(config: PreTrainedConfig) -> Family:
    """The row of a config's family; raises `UnsupportedFamilyError` when there is none."""
    # Read past the config's own __getattribute__, which is slow and asked for at every call.
    family = FAMILIES.get(type(config).model_type)
    if family is None:
        raise UnsupportedFamilyError(unsupported_message(config.model_type))
    for refusal in _REFUSALS:
        why = refusal(config, family.model_type)
        if why:
            raise UnsupportedFamilyError(f"This {family.model_type} has {why}")
    return family


def unsupported_message(model_type: object) -> str:
    """What to tell someone whose model has no row."""
    if isinstance(model_type, str) and model_type in WITHOUT_A_ROW:
        return f"Model family {model_type!r} is not supported: {WITHOUT_A_ROW[model_type]}"
    known = sorted(FAMILIES)
    close = difflib.get_close_matches(str(model_type), known, n=1, cutoff=0.75)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"Model family {model_type!r} is not supported.{hint} Known: {', '.join(known)}. "
        "Choose a component of one of these families, or add a row to "
        "manticore/models/families.py (CONTRIBUTING.md, 'Add a model family')."
    )


def _leaking_bias(config: Any, kind: str) -> str | None:
    if kind == "lfm2" and config.conv_bias:
        return (
            "conv_bias=True, and transformers lets padding leak through that bias. Published LFM2 "
            "models have none; use one of them."
        )
    return None


def _projected_table(config: Any, kind: str) -> str | None:
    if kind == "opt" and config.word_embed_proj_dim != config.hidden_size:
        return (
            f"embeddings of {config.word_embed_proj_dim} dimensions that it projects to its width "
            f"of {config.hidden_size}; a component's table and head must have the width of its "
            "layers. Of the published sizes only opt-350m is built so: use another."
        )
    return None


def _window_of_one(config: Any, kind: str) -> str | None:
    if config.__dict__.get("sliding_window") == 1:
        return (
            "sliding_window=1: each token would see itself alone, and transformers' cache then "
            "keeps every token instead of none. Use a window of 2 or more, or None."
        )
    return None


def _forgotten_limit(config: Any, kind: str) -> str | None:
    limit = config.__dict__.get("time_step_limit")
    forgets = kind in ("mamba2", "bamba", "granitemoehybrid", "falcon_h1")
    if forgets and limit is not None and tuple(limit) != (0, math.inf):
        return (
            f"time_step_limit={list(limit)}, which transformers leaves out when it decodes with a "
            "cache. Published models have no limit; use one of them."
        )
    return None


def _cross_attention(config: Any, kind: str) -> str | None:
    if config.__dict__.get("add_cross_attention", False):
        return (
            "add_cross_attention=True: it is the decoder of an encoder-decoder model. Only "
            "decoder-only language models can be components."
        )
    return None


_REFUSALS = (
    _leaking_bias,
    _projected_table,
    _window_of_one,
    _forgotten_limit,
    _cross_attention,
)
