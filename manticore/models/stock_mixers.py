"""Models built from mixers that a class of transformers computes: all Mamba, or all Mamba-2.

Their blocks are x + mixer(norm(x)) with one RMS norm each, as in `MambaForCausalLM` and
`Mamba2ForCausalLM`. What is not exactly that is refused, with the first difference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedModel

from manticore.mixers.interface import MixerSpec
from manticore.mixers.mamba import MambaSpec
from manticore.mixers.mamba2 import Mamba2Spec
from manticore.models.configuration_mixer_lm import MixerLMConfig
from manticore.models.modeling_mixer_lm import MixerForCausalLM
from manticore.models.stock import SPECIAL_TOKENS, NoStockClassError, stock_model

_NO_MATTER = {"kernel": "torch", "compat": "fixed"}
"""Settings that change no output of a trained model: who computes, and how weights start."""
_SHARED_NAMES = {
    "conv_bias": "conv1d.bias",
    "log_rate": "A_log",
    "skip": "D",
    "input.weight": "in_proj.weight",
    "output.weight": "out_proj.weight",
}
_NAMES: dict[str, dict[str, str]] = {
    "mamba": {
        **_SHARED_NAMES,
        "select.weight": "x_proj.weight",
        "time_step.weight": "dt_proj.weight",
        "step_bias": "dt_proj.bias",
    },
    "mamba2": {**_SHARED_NAMES, "step_bias": "dt_bias", "norm_weight": "norm.weight"},
}


def mixers_as_stock_model(model: MixerForCausalLM) -> PreTrainedModel:
    """The same function as a `MambaForCausalLM` or a `Mamba2ForCausalLM`.

    Raises:
        NoStockClassError: neither expresses it; the message names the first difference.
    """
    config = model.config
    difference = next(_differences(config), None)
    if difference is not None:
        raise NoStockClassError(f"No class of transformers is known to compute this: {difference}.")
    spec = config.specs()[0]
    name, own = _class_fields(spec)
    fields = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "residual_in_fp32": False,
        "use_bias": False,
        "use_conv_bias": True,
        # Theirs are 0 to 2 by default, and generation would stop there.
        **{token: getattr(config, token, None) for token in SPECIAL_TOKENS},
    }
    return stock_model(CONFIG_MAPPING[name](**fields, **own), _tensors(model, name))


def _differences(config: MixerLMConfig) -> Iterator[str]:
    """What neither class can be, first things first."""
    names = [layer["mixer"] for layer in config.layers]
    if not names:
        yield "it has no layers"
        return
    for index, name in enumerate(names):
        if name not in _NAMES:
            yield f"layer {index} is {name}, and only models of all mamba or all mamba2 can leave"
        elif name != names[0]:
            yield f"layer {index} is {name} and layer 0 is {names[0]}, and neither class mixes them"
    if any(name not in _NAMES for name in names):
        return
    specs = [plain_spec(spec) for spec in config.specs()]
    for index, spec in enumerate(specs):
        if spec != specs[0]:
            yield f"the settings of layer {index} are not those of layer 0"
    if config.norm != "rms":
        yield f"norm={config.norm!r} here, 'rms' there"
    if config.positions != "none":
        yield f"positions={config.positions!r} here, 'none' there"
    if config.head_bias:
        yield "the head has a bias here and none there"
    if isinstance(specs[0], Mamba2Spec) and specs[0].norm_eps != config.norm_eps:
        yield f"norm_eps is {specs[0].norm_eps:g} in Mamba-2 and {config.norm_eps:g} around it"


def plain_spec(spec: MixerSpec) -> MixerSpec:
    """The specification without what changes no output of a trained model."""
    known = {field.name for field in dataclasses.fields(spec)}
    changes: dict[str, Any] = {key: value for key, value in _NO_MATTER.items() if key in known}
    return dataclasses.replace(spec, **changes)


def _class_fields(spec: MixerSpec) -> tuple[str, dict[str, Any]]:
    """The class's model type, and the fields that the mixer gives its config."""
    assert isinstance(spec, MambaSpec | Mamba2Spec)  # no difference was found
    shared = {
        "expand": spec.expand,
        "state_size": spec.d_state,
        "conv_kernel": spec.conv_size,
    }
    if isinstance(spec, MambaSpec):
        return "mamba", {**shared, "time_step_rank": spec.rank}
    heads = {"num_heads": spec.n_heads, "head_dim": spec.head_dim, "n_groups": spec.n_groups}
    return "mamba2", {**shared, **heads}


def _tensors(model: MixerForCausalLM, name: str) -> dict[str, Tensor]:
    """Every tensor under the class's name; one that is unknown here is refused by `stock_model`."""
    found = {"lm_head.weight": model.lm_head.weight}
    for key, value in model.model.state_dict().items():
        stem, _, rest = key.partition(".mixer.")
        if rest == "conv.weight":
            # (channels, taps) here, (channels, 1, taps) in torch's convolution.
            rest, value = "conv1d.weight", value.reshape(value.shape[0], 1, -1)
        elif rest:
            rest = _NAMES[name].get(rest, rest)
        found[f"backbone.{stem}.mixer.{rest}" if rest else f"backbone.{_outer(key)}"] = value
    return found


def _outer(key: str) -> str:
    renamed = {"embed_tokens.weight": "embeddings.weight", "norm.weight": "norm_f.weight"}
    return renamed.get(key, key)
