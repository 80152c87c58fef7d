"""Small random models of any family, so that a family can be examined without its weights.

A family is examined in three configurations: query heads in groups; a single key-value head, with
the tables tied where they were not and the kinds of layers in another order; a key-value head for
each query head, with other habits of the family.
"""

from __future__ import annotations

import difflib
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from manticore.evaluation.conformance.causal import check_causal
from manticore.evaluation.conformance.small_settings import COMMON, HABITS, SPECIAL
from manticore.models import families, supported
from manticore.models.weight_files import first_line
from manticore.seeds import torch_generator

_KINDS_OF_LAYERS = ("layer_types", "layers_block_type", "block_types")
CONFIGURATIONS = (0, 1, 2)
"""The numbers by which `small_config` knows the configurations of a family."""
FAMILIES = tuple(sorted({*families.FAMILIES, *supported.WITHOUT_A_ROW, *SPECIAL}))
"""Families that can be components, those that are refused, and more; others may work."""


def small_config(model_type: str, configuration: int = 0, **changes: Any) -> Any:
    """A config of this family, a few hundred thousand parameters large.

    Args:
        model_type: its name in transformers.
        configuration: one of `CONFIGURATIONS`.
        changes: fields of the config, before all others.

    Raises:
        ValueError: transformers has no causal language model of this name, or the sizes that most
            families take do not suit it.
    """
    # Our own families' models are known to transformers once one of their configs was made.
    fields = CONFIG_MAPPING[model_type]() if model_type in CONFIG_MAPPING else None
    known = [name for name, config in CONFIG_MAPPING.items() if config in _causal_configs()]
    if model_type not in known:
        close = difflib.get_close_matches(model_type, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"transformers has no causal language model family {model_type!r}.{hint} "
            f"Examined here: {', '.join(FAMILIES)}."
        )
    config_class = CONFIG_MAPPING[model_type]
    sizes = {key: value for key, value in COMMON.items() if _is_settable(fields, key)}
    first = {**sizes, **SPECIAL.get(model_type, {})}
    other = _other(model_type, configuration, first, fields) if configuration else {}
    try:
        config = config_class(**{**first, **other, **changes})
    except Exception as error:  # the validators of configs raise classes of their own
        raise _no_small_model(model_type, error) from error
    check_causal(config, f"The family {model_type}")
    return config


def small_model(model_type: str, seed: int = 0, configuration: int = 0, **changes: Any) -> Any:
    """A random model of this family in evaluation mode, float32.

    Every weight gets noise, because a norm at one and a bias at zero hide what is wrong with them.
    """
    config = small_config(model_type, configuration, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # transformers initialises from the global generator
        try:
            model = AutoModelForCausalLM.from_config(config).float()
        except Exception as error:
            raise _no_small_model(model_type, error) from error
    generator = torch_generator(seed, "small model", model_type, configuration)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def _no_small_model(model_type: str, error: Exception) -> ValueError:
    return ValueError(
        f"No small {model_type} can be made: {type(error).__name__}: {first_line(error)}. Give the "
        "folder of a model, or give the family's sizes in "
        "manticore/evaluation/conformance/small_settings.py."
    )


def _other(model_type: str, configuration: int, first: dict[str, Any], fields: Any) -> Any:
    """What the second or the third configuration changes of the first."""
    changes: dict[str, Any] = {}
    if "num_key_value_heads" in first:
        changes["num_key_value_heads"] = {1: 1, 2: 4}[configuration]
    if configuration == 1:
        changes["tie_word_embeddings"] = not fields.tie_word_embeddings
        changes |= {key: first[key][::-1] for key in _KINDS_OF_LAYERS if key in first}
    return {**changes, **HABITS.get(model_type, ({}, {}))[configuration - 1]}


def _causal_configs() -> set[type]:
    return set(MODEL_FOR_CAUSAL_LM_MAPPING.keys())


def _is_settable(config: Any, name: str) -> bool:
    """Whether the config has this field, and not as something that it derives."""
    return hasattr(config, name) and not isinstance(getattr(type(config), name, None), property)
