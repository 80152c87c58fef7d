"""What the tests of conversion share: every kind of mixer, tiny sources, padded batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manticore.conversion.modeling_converted import ConvertedForCausalLM
from manticore.conversion.transfer import transfer
from tests.models.tiny import tiny

SOURCES = (
    *("gpt_neox", "gpt2", "gptj", "llama", "mistral", "qwen2", "qwen3", "phi", "olmo2"),
    *("arcee", "starcoder2"),
)
NEIGHBOURS = ("ernie4_5", "helium")
"""Sources like Llama but for their rotated pairs, which are neighbours."""
SHAPED = (
    "attention",
    "sliding-attention",
    "attention-mamba2",
    "linear-attention",
    "retention",
    "gated-linear-attention",
    "mamba2-heads",
    "deltanet",
    "gated-deltanet",
)
"""Mixers that keep the source's projections."""
OWN: tuple[dict[str, Any], ...] = (
    {"mixer": "mamba"},
    {"mixer": "mamba2", "head_dim": 8},
    {"mixer": "rwkv5", "head_size": 8},
    {"mixer": "rwkv6", "head_size": 8},
    {"mixer": "rwkv7", "head_size": 8},
    {"mixer": "mh-attention", "n_heads": 4},
    {"mixer": "mh-sliding-attention", "n_heads": 4, "window": 9},
    {"mixer": "mh-linear-attention", "n_heads": 4},
    {"mixer": "mh-gated-linear-attention", "n_heads": 4},
    {"mixer": "gated-conv"},
    {"mixer": "hyena"},
    {"mixer": "mh-hyena", "n_heads": 4},
    {"mixer": "hyena-experts"},
)
"""Mixers with projections of their own."""
GROWING = (
    "attention",
    "attention-mamba2",
    "some attention",
    "mh-attention",
    "hyena",
    "mh-hyena",
    "hyena-experts",
)
"""Layouts whose state holds something of every token."""
PLAIN_ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
LAYOUTS: dict[str, Any] = {
    **{name: name for name in SHAPED},
    "sliding-attention": {"mixer": "sliding-attention", "window": 9},
    **{str(layer["mixer"]): layer for layer in OWN},
    "some attention": ["retention", "attention", "mamba", "linear-attention"],
}


def tiny_source(family: str, variant: int = 0, **settings: Any) -> PreTrainedModel:
    """A tiny model whose rotary angles do not depend on the length, as a source's must not."""
    if (family, variant) == ("llama", 1):
        settings = {**PLAIN_ROTARY, **settings}
    return tiny(family, variant=variant, **settings)


def converted(
    target: Any, source: str | PreTrainedModel = "gpt_neox", **options: Any
) -> ConvertedForCausalLM:
    """A tiny source with other mixers, each a little off its start."""
    model_in = tiny(source) if isinstance(source, str) else source
    model, _ = transfer(model_in, target, **{"copy": "paper", **options})
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():  # what starts at zero would hide what it is connected to
        for name, parameter in model.named_parameters():
            if ".mixer." in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def pad_left(rows: list[Tensor], value: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (batch, longest) of sequences that end together."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), value)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :], mask[index, longest - len(row) :] = row, 1
    return ids, mask


def maximal(difference: Tensor) -> float:
    """Largest absolute value."""
    return difference.abs().max().item()
