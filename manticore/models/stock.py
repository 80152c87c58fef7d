"""The door to transformers' own classes: weights and a config in, a stock model out.

What leaves through it needs no Manticore to be loaded. Who calls it knows how a hybrid or a
converted model is made; here only configs and tensors are known.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from manticore.models.pretrained import inner_model

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


class NoStockClassError(ValueError):
    """No class of transformers computes what this model computes; the message says why."""


def stock_model(config: PreTrainedConfig, state: Mapping[str, Tensor]) -> PreTrainedModel:
    """The causal language model of a config with these weights, in eval mode.

    Args:
        config: of a family of transformers.
        state: a tensor for every name in the model; their dtypes stay. A tied head may be absent.

    Raises:
        NoStockClassError: a class of ours, or tensors that are not exactly the model's.
    """
    model = _empty_model(config)
    # A tied head is the table by another name, and saved models differ in listing it.
    tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
    wanted = set(model.state_dict()) - tied
    given = {name: value for name, value in state.items() if name not in tied}
    differing = sorted(wanted ^ set(given))
    if differing:
        problem = "lacks" if differing[0] in wanted else "has, and the class does not know,"
        raise NoStockClassError(
            f"The model {problem} {differing[0]} ({len(differing)} tensors differ from those of "
            f"{type(model).__name__})."
        )
    for name, value in given.items():
        owner, _, leaf = name.rpartition(".")
        _place(model.get_submodule(owner), leaf, value)
    model.tie_weights()
    return model.eval()


def component_model(base: PreTrainedModel, head: nn.Module, special: Any) -> PreTrainedModel:
    """A component of a hybrid as its own class, with its own weights.

    Args:
        base: what has the layers (`split_causal_lm`'s, or its inner model).
        head: the component's language head.
        special: config or namespace with the ids of special tokens; None keeps the component's.
    """
    config = copy.deepcopy(base.config)
    for name in SPECIAL_TOKENS:
        token = getattr(special, name, None)
        if token is not None:
            setattr(config, name, token)
    empty = _empty_model(config)
    inner, output = inner_model(empty.base_model), empty.get_output_embeddings()
    names: dict[int, str] = {id(module): name for name, module in empty.named_modules()}
    state = {f"{names[id(inner)]}.{key}": value for key, value in base.state_dict().items()}
    state |= {f"{names[id(output)]}.{key}": value for key, value in head.state_dict().items()}
    return stock_model(config, state)


def is_ours(config: PreTrainedConfig) -> bool:
    """Whether loading this config's model takes an import of Manticore."""
    return type(config).__module__.partition(".")[0] == "manticore"


def _empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model without initialised weights; its buffers are computed."""
    if is_ours(config):
        raise NoStockClassError(
            f"Its class is Manticore's own ({config.model_type}), which transformers lacks."
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise NoStockClassError(f"transformers has no language model for {config.model_type}.")
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.random.fork_rng(devices=[]):  # first weights are drawn and thrown away
        model: PreTrainedModel = model_class(config)
    return model


def _place(module: nn.Module, leaf: str, value: Tensor) -> None:
    """Put a tensor where an empty model has one of the same shape."""
    old = getattr(module, leaf)
    if old.shape != value.shape:
        raise NoStockClassError(
            f"A tensor {leaf!r} of {type(module).__name__} is {tuple(value.shape)} here and "
            f"{tuple(old.shape)} in the class."
        )
    value = value.detach().clone(memory_format=torch.contiguous_format)
    setattr(module, leaf, nn.Parameter(value) if isinstance(old, nn.Parameter) else value)
