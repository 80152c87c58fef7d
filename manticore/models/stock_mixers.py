"""Models built from mixers that a class of transformers computes line by line.

Their layers are x + mixer(norm(x)) with one RMS norm each, as in `MambaForCausalLM` and
`Mamba2ForCausalLM`, whose mixers are all of one kind, and in `NemotronHForCausalLM`, which mixes
Mamba-2, attention without positions and MLPs in any order. What is not exactly that is refused,
with the first difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedModel

from manticore.mixers.attention import AttentionSpec
from manticore.mixers.interface import MixerSpec
from manticore.mixers.mamba import MambaSpec
from manticore.mixers.mamba2 import Mamba2Spec
from manticore.mixers.mlp import MLPSpec
from manticore.models.configuration_mixer_lm import MixerLMConfig
from manticore.models.modeling_mixer_lm import MixerForCausalLM
from manticore.models.stock import SPECIAL_TOKENS, NoStockClassError, stock_model
from manticore.models.stock_parts import renamed, what_matters

_PARTS: dict[type[MixerSpec], str] = {
    MambaSpec: "mamba",
    Mamba2Spec: "mamba2",
    AttentionSpec: "attention",
    MLPSpec: "mlp",
}
_NEMOTRON_KINDS: dict[type[MixerSpec], str] = {
    Mamba2Spec: "linear_attention",
    AttentionSpec: "full_attention",
    MLPSpec: "mlp",
}
_PLAIN_ATTENTION = {
    "window": None,
    "rotary_fraction": 0.0,
    "qkv_bias": False,
    "output_bias": False,
}
_SMALLEST_STEP = 1e-30
"""Nemotron-H raises time steps to a smallest one, which has to be above 0."""
_Spec = TypeVar("_Spec", bound=MixerSpec)


def mixers_as_stock_model(model: MixerForCausalLM) -> PreTrainedModel:
    """The same function as a `MambaForCausalLM`, `Mamba2ForCausalLM` or `NemotronHForCausalLM`.

    Raises:
        NoStockClassError: none expresses it; the message names the first difference.
    """
    config = model.config
    difference = next(_differences(config), None)
    if difference is not None:
        raise NoStockClassError(f"No class of transformers is known to compute this: {difference}.")
    kinds = {type(spec) for spec in config.specs()}
    name = _PARTS[kinds.pop()] if kinds in ({MambaSpec}, {Mamba2Spec}) else "nemotron_h"
    fields = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "residual_in_fp32": False,
        "use_bias": False,
        "use_conv_bias": True,
        # Theirs are 0 to 2 by default, and generation would stop there.
        **{token: getattr(config, token, None) for token in SPECIAL_TOKENS},
        **_own_fields(name, config),
    }
    return stock_model(CONFIG_MAPPING[name](**fields), _tensors(model, name == "nemotron_h"))


def _differences(config: MixerLMConfig) -> Iterator[str]:
    """What no class can be, first things first."""
    specs = config.specs()
    if not specs:
        yield "it has no layers"
        return
    kinds = dict.fromkeys(type(spec) for spec in specs)  # as a set, but in order
    for index, spec in enumerate(specs):
        if type(spec) not in _PARTS:
            yield f"no class has the mixer {config.layers[index]['mixer']} of layer {index}"
    if MambaSpec in kinds and len(kinds) > 1:
        other = next(i for i, spec in enumerate(specs) if type(spec) is not type(specs[0]))
        names = [config.layers[index]["mixer"] for index in (other, 0)]
        yield f"layer {other} is {names[0]} and layer 0 is {names[1]}, and no class mixes them"
    if list(kinds) not in ([MambaSpec], [Mamba2Spec]) and AttentionSpec not in kinds:
        yield "Nemotron-H needs a layer of attention, which tells its cache how long it is"
    for kind in kinds:
        yield from _uneven(config, kind)
    for spec in specs:
        yield from _of_attention(spec)
    if config.norm != "rms":
        yield f"norm={config.norm!r} here, 'rms' there"
    if config.positions != "none":
        yield f"positions={config.positions!r} here, 'none' there"
    if config.head_bias:
        yield "the head has a bias here and none there"
    for spec in specs:
        if isinstance(spec, Mamba2Spec) and spec.norm_eps != config.norm_eps:
            yield f"norm_eps is {spec.norm_eps:g} in Mamba-2 and {config.norm_eps:g} around it"


def _uneven(config: MixerLMConfig, kind: type[MixerSpec]) -> Iterator[str]:
    """Layers of a kind whose settings are not those of its first."""
    found = {i: what_matters(spec) for i, spec in enumerate(config.specs()) if type(spec) is kind}
    first = min(found)
    for index, spec in found.items():
        if spec != found[first]:
            yield f"the settings of layer {index} are not those of layer {first}"


def _of_attention(spec: MixerSpec) -> Iterator[str]:
    if isinstance(spec, AttentionSpec):
        for name, value in _PLAIN_ATTENTION.items():
            if getattr(spec, name) != value:
                yield f"attention has {name}={getattr(spec, name)!r} here, {value!r} in Nemotron-H"


def _own_fields(name: str, config: MixerLMConfig) -> dict[str, Any]:
    """What only this class's config says."""
    if name == "nemotron_h":
        return _nemotron(config)
    spec = config.specs()[0]
    assert isinstance(spec, MambaSpec | Mamba2Spec)  # no difference was found
    shared = {
        "num_hidden_layers": config.num_hidden_layers,
        "expand": spec.expand,
        "state_size": spec.d_state,
        "conv_kernel": spec.conv_size,
    }
    if isinstance(spec, MambaSpec):
        return {**shared, "time_step_rank": spec.rank}
    return {
        **shared, "num_heads": spec.n_heads, "head_dim": spec.head_dim, "n_groups": spec.n_groups
    }  # fmt: skip


def _nemotron(config: MixerLMConfig) -> dict[str, Any]:
    specs = config.specs()
    fields: dict[str, Any] = {
        "layers_block_type": [_NEMOTRON_KINDS[type(spec)] for spec in specs],
        "time_step_min": _SMALLEST_STEP,
    }
    attention = _first(specs, AttentionSpec)
    if attention is not None:
        fields |= {
            "num_attention_heads": attention.n_heads,
            "num_key_value_heads": attention.kv_heads,
            "head_dim": attention.head_size,
        }
    mamba = _first(specs, Mamba2Spec)
    if mamba is not None:
        fields |= {
            "mamba_num_heads": mamba.n_heads,
            "mamba_head_dim": mamba.head_dim,
            "ssm_state_size": mamba.d_state,
            "n_groups": mamba.n_groups,
            "conv_kernel": mamba.conv_size,
            "expand": mamba.expand,
        }
    mlp = _first(specs, MLPSpec)
    if mlp is not None:
        fields |= {"intermediate_size": mlp.inner_width, "mlp_hidden_act": "gelu_pytorch_tanh"}
    return fields


def _first(specs: list[MixerSpec], kind: type[_Spec]) -> _Spec | None:
    return next((spec for spec in specs if isinstance(spec, kind)), None)


def _tensors(model: MixerForCausalLM, is_nemotron: bool) -> dict[str, Tensor]:
    """Every tensor under the class's name; one that is unknown here is refused by `stock_model`."""
    state, stem = model.state_dict(), "model" if is_nemotron else "backbone"
    found = {
        "lm_head.weight": state["lm_head.weight"],
        f"{stem}.embeddings.weight": state["model.embed_tokens.weight"],
        f"{stem}.norm_f.weight": state["model.norm.weight"],
    }
    for index, spec in enumerate(model.config.specs()):
        layer, prefix = f"layers.{index}", f"model.layers.{index}.mixer."
        mixer = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        found[f"{stem}.{layer}.norm.weight"] = state[f"model.{layer}.norm.weight"]
        found |= {
            f"{stem}.{layer}.mixer.{name}": value
            for name, value in renamed(_PARTS[type(spec)], mixer).items()
        }
    return found
