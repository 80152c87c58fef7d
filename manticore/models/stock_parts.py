"""What transformers calls the tensors inside our mixers.

Its classes agree on these names and differ in what lies around them, so every layout that leaves
as one of them renames through here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from manticore.mixers.interface import MixerSpec

_STATE_SPACE = {
    "input": "in_proj",
    "conv": "conv1d",
    "conv_bias": "conv1d.bias",
    "log_rate": "A_log",
    "skip": "D",
    "output": "out_proj",
}
_ATTENTION = {
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "output": "o_proj",
    "q_norm": "q_norm",
    "k_norm": "k_norm",
}
_MAMBA = {
    **_STATE_SPACE,
    "select": "x_proj",
    "time_step": "dt_proj",
    "step_bias": "dt_proj.bias",
}
PARTS: dict[str, dict[str, str]] = {
    "attention": _ATTENTION,
    "mamba": _MAMBA,
    "normed-mamba": {
        **_MAMBA,
        "step_norm": "dt_layernorm",
        "b_norm": "b_layernorm",
        "c_norm": "c_layernorm",
    },
    "mamba2": {**_STATE_SPACE, "step_bias": "dt_bias", "norm_weight": "norm.weight"},
    "gated-deltanet": {
        **_ATTENTION,
        "beta": "b_proj",
        "decay": "a_proj",
        "gate": "g_proj",
        "conv": "conv1d",
        "log_rate": "A_log",
        "step_bias": "dt_bias",
        "norm_weight": "o_norm.weight",
    },
    "gated-conv": {"input": "in_proj", "conv": "conv", "output": "out_proj"},
    "mlp": {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"},
}
"""Mixer -> our module or parameter in it -> theirs."""
_NO_MATTER = {"kernel": "torch", "compat": "fixed"}


def renamed(mixer: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a mixer under transformers' names.

    Args:
        mixer: key of `PARTS`.
        tensors: by their names within the mixer. One that is not known keeps its name, and
            `stock_model` then refuses it.
    """
    names, found = PARTS[mixer], {}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        if module == "conv":
            # (channels, taps) here, (channels, 1, taps) in torch's convolution.
            value = value.unsqueeze(1)
        found[names.get(name) or f"{names.get(module, module)}.{leaf}".lstrip(".")] = value
    return found


def what_matters(spec: MixerSpec) -> MixerSpec:
    """A mixer without the settings that change no output: who computes, and how weights start."""
    known = {field.name for field in dataclasses.fields(spec)}
    changes: dict[str, Any] = {key: value for key, value in _NO_MATTER.items() if key in known}
    return dataclasses.replace(spec, **changes)
