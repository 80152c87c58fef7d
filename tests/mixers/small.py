"""Small settings for every named mixer: the rows of the shared checks.

A new mixer adds one row. `d_model` is small, heads have several channels, and every bound that
the mixer has (a window, a chunk) is short enough to be crossed within 63 tokens.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from manticore.mixers.interface import Mixer, MixerSpec
from manticore.mixers.table import TABLE, mixer_spec
from manticore.seeds import torch_generator

SMALL: dict[str, dict[str, Any]] = {
    "attention": {"d_model": 16},
    "mh-attention": {"d_model": 32, "n_heads": 4},
    "sliding-attention": {"d_model": 16, "window": 7},
    "mh-sliding-attention": {"d_model": 32, "n_heads": 4, "window": 7},
    "linear-attention": {"d_model": 16},
    "mh-linear-attention": {"d_model": 32, "n_heads": 4},
    "gated-linear-attention": {"d_model": 16},
    "mh-gated-linear-attention": {"d_model": 32, "n_heads": 4},
    "retention": {"d_model": 32, "n_heads": 4},
    "deltanet": {"d_model": 32, "n_heads": 4},
    "gated-deltanet": {"d_model": 32, "n_heads": 4},
    "gated-conv": {"d_model": 16},
    "hyena": {"d_model": 16},
    "mh-hyena": {"d_model": 32},
    "hyena-experts": {"d_model": 32},
    "mamba": {"d_model": 16},
    "normed-mamba": {"d_model": 16, "dt_rank": 4},  # a norm of one channel would leave its sign
    "mamba2": {"d_model": 32},
    "attention-mamba2": {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "window": 7},
    "rwkv5": {"d_model": 32},
    "rwkv6": {"d_model": 32},
    "rwkv7": {"d_model": 32},
    "mlp": {"d_model": 16},
    "swiglu": {"d_model": 16},
    "moe-mlp": {"d_model": 16},
    "rwkv5-channel": {"d_model": 16},
    "rwkv6-channel": {"d_model": 16},
    "rwkv7-channel": {"d_model": 16},
}


def names_with_a_module() -> list[str]:
    """The names of the table whose file exists."""
    return [name for name, (place, _) in TABLE.items() if _exists(place.partition(":")[0])]


def small_spec(name: str, **settings: Any) -> MixerSpec:
    """The small specification of a name, `settings` over its row."""
    return mixer_spec(name, **{**SMALL[name], **settings})


def small_mixer(name: str, seed: int = 0, **settings: Any) -> Mixer:
    """A small mixer with seeded weights, each a little off its start.

    Some weights start at zero, where they would hide what they are connected to.
    """
    generator = torch_generator(seed, "small mixer", name)
    mixer = small_spec(name, **settings).build(generator)
    with torch.no_grad():
        for parameter in mixer.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * noise.to(parameter.dtype))
    return mixer


def tokens(batch: int, seq_len: int, d_model: int, seed: int = 0) -> torch.Tensor:
    """Inputs (batch, seq, d_model) of unit variance."""
    return torch.randn(batch, seq_len, d_model, generator=torch_generator(seed, "tokens"))


def _exists(module: str) -> bool:
    return importlib.util.find_spec(f"manticore.mixers.{module}") is not None
