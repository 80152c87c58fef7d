"""The pretrained model of a recipe: loaded, given a classifier, and wrapped by a method."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from manticore.adapters.uncovered import UncoveredLayersWarning
from manticore.config.adapter_recipe import AdaptModelConfig, AdaptRecipe, MethodConfig
from manticore.evaluation.memory_shadow import UnknownMemoryError
from manticore.models.fast_paths import bind_fast_paths
from manticore.models.weight_files import first_line
from manticore.seeds import derive_seed
from manticore.text.prepared import resolve_path
from manticore.text.tokenizers import load_tokenizer
from manticore.tuning.data import TuningData
from manticore.tuning.methods import DEFAULT, FULL, adapt

_HEADS = ("score", "classifier", "classification_head", "pre_classifier")
"""What transformers calls the new part of a classifier."""


def load_model_tokenizer(config: AdaptModelConfig, base: Path) -> Any:
    """The tokenizer of a recipe's model."""
    return load_tokenizer(resolve_path(config.tokenizer or config.path, base))


def tuned_model(
    recipe: AdaptRecipe, method: MethodConfig, base: Path, data: TuningData, seed: int
) -> torch.nn.Module:
    """The model as a method starts: base weights loaded, new weights drawn by the seed alone."""
    _refuse_quantized(recipe, method)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, recipe.name, "new weights"))
        model = _load(recipe.model, base, len(data.labels), data.pad)
        bind_fast_paths(model.base_model)
        return _placed(wrapped_model(model, method, len(data.labels) > 0))


def _placed(model: torch.nn.Module) -> torch.nn.Module:
    """The model on the accelerator, if there is one and loading has not placed it already."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None or getattr(model, "hf_device_map", None):
        return model
    return model.to(device)


def wrapped_model(
    model: PreTrainedModel, method: MethodConfig, is_classifier: bool
) -> torch.nn.Module:
    """A model with a method's adapters; a new classifier is trained in full."""
    targets: Any = list(method.targets)
    if method.targets in ((DEFAULT,), ("all-linear",)):
        targets = method.targets[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncoveredLayersWarning)  # the recipe names the targets
        return adapt(
            model,
            method.method,
            method.settings,
            targets,
            trained_too=_new_heads(model) if is_classifier else (),
        )


def _load(config: AdaptModelConfig, base: Path, n_labels: int, pad: int) -> PreTrainedModel:
    path = resolve_path(config.path, base)
    options: dict[str, Any] = {
        "dtype": torch.float32 if config.dtype == "fp32" else torch.bfloat16,
        "use_safetensors": True,
    }
    if config.quantization != "none":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=config.quantization == "4bit", load_in_8bit=config.quantization == "8bit"
        )
    settings = load_config_of(config, base)
    loader: Any = AutoModelForCausalLM
    if n_labels:
        _refuse_without_classifier(settings)
        loader = AutoModelForSequenceClassification
        settings.num_labels = n_labels
        settings.pad_token_id = pad  # by which a decoder's classifier finds the last token
    before = logging.get_verbosity()
    try:
        if n_labels:
            logging.set_verbosity_error()  # that the classifier is new is what was asked for
        return loader.from_pretrained(path, config=settings, **options)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"The model {config.path} does not load: {first_line(error)}. Fetch or save it again, "
            "with safetensors weights."
        ) from error
    finally:
        logging.set_verbosity(before)


def load_config_of(config: AdaptModelConfig, base: Path, *, is_dry: bool = False) -> Any:
    """The configuration of a recipe's model; code that it names is never run.

    Args:
        is_dry: ask no hub: a name that is not in its cache raises FileNotFoundError.
    """
    path = resolve_path(config.path, base)
    is_name = not Path(path).is_absolute() and not Path(path).is_dir()
    if not is_name and not Path(path).is_dir():
        raise ValueError(f"model.path {config.path}: there is no folder {path}.")
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=is_dry)
    except (OSError, ValueError) as error:
        if is_dry and is_name and isinstance(error, OSError):
            raise FileNotFoundError(
                f"the configuration of {path} is not on this machine; `hf download {path} "
                "config.json` brings it."
            ) from error
        raise ValueError(
            f"model.path {config.path} is no model: {first_line(error)}. Give a folder or a name "
            "on the hub."
        ) from error


def _refuse_quantized(recipe: AdaptRecipe, method: MethodConfig) -> None:
    if method.method == FULL and recipe.model.quantization != "none":
        raise ValueError("Quantized weights cannot be trained. Leave model.quantization out.")


def _refuse_without_classifier(settings: Any) -> None:
    if type(settings) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"transformers has no classifier for {settings.model_type}. Use a model such as "
            "roberta or gpt_neox, or data.format: instruction with the label as the answer."
        )


def _new_heads(model: PreTrainedModel) -> tuple[str, ...]:
    return tuple(name for name, _ in model.named_children() if name in _HEADS)


def shell_model(recipe: AdaptRecipe, method: MethodConfig, base: Path) -> torch.nn.Module:
    """The model without weights, wrapped by a method: for counting. Call it on the meta device.

    No hub is asked: a model that is not on this machine raises FileNotFoundError, a method that
    computes with the model's weights UnknownMemoryError.
    """
    _refuse_quantized(recipe, method)
    settings = load_config_of(recipe.model, base, is_dry=True)
    is_classifier = recipe.data.format == "classification"
    if is_classifier:
        _refuse_without_classifier(settings)
        settings.num_labels = len(recipe.data.labels) or 2
        model = AutoModelForSequenceClassification.from_config(settings)
    else:
        model = AutoModelForCausalLM.from_config(settings)
    try:
        with torch.device("cpu"):  # BOFT and FourierFT read what they have just drawn
            return wrapped_model(model, method, is_classifier)
    except RuntimeError as error:
        raise UnknownMemoryError(
            f"{method.id}: {method.method} computes with the weights while it is built, so its "
            "parameters and memory cannot be told without them. Measure a short run instead."
        ) from error
