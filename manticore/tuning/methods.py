"""PEFT methods by name, with settings from a recipe or the command line, checked first."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import peft
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

import manticore  # noqa: F401 (registers MoRe with PEFT)
from manticore.adapters.targets import default_targets
from manticore.config.errors import did_you_mean

FULL = "full"
"""Fine-tuning of every weight, in place of a method of PEFT."""
DEFAULT = "default"
"""As a target: every layer that can take an adapter, by `default_targets`."""

# Settings of a method that follow from others or that adapters in a recipe must not decide.
_OURS = ("peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision")


def method_names() -> list[str]:
    """The names that a recipe may use: methods that change modules, not prompts."""
    return [FULL, *sorted(_by_name())]


def check_method(method: str, settings: Mapping[str, Any]) -> None:
    """Raise unless the method exists and has these settings."""
    if method == FULL:
        if settings:
            raise ValueError(
                f"Full fine-tuning has no settings, but {', '.join(settings)} is given. Leave it "
                "out."
            )
        return
    allowed = _settings_of(method)
    if "target_modules" in settings:
        raise ValueError(
            f"{method}: the modules are not among its settings. Give them as `targets` (--targets)."
        )
    for key in settings:
        if key not in allowed:
            raise ValueError(
                f"{method} has no setting '{key}'.{did_you_mean(key, allowed)} Known: "
                f"{', '.join(sorted(allowed))}."
            )


def method_config(
    method: str, settings: Mapping[str, Any], targets: list[str] | str | None
) -> PeftConfig:
    """A method's configuration; what PEFT itself refuses raises with the method's name."""
    check_method(method, settings)
    cls = _config_class(method)
    given = dict(settings)
    if targets is not None:
        given["target_modules"] = targets
    if method == "ia3" and targets is not None:
        # Scaling inputs is for the second matrix of an MLP, by name; outputs suit any matrix.
        given.setdefault("feedforward_modules", [])
    try:
        return cls(**given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{method} refuses its settings: {error}") from error


def adapt(
    model: nn.Module,
    method: str,
    settings: Mapping[str, Any],
    targets: list[str] | str | None = DEFAULT,
    trained_too: tuple[str, ...] = (),
) -> nn.Module:
    """Wrap a model by a method, with every weight of the base model frozen; `full` frees them all.

    Args:
        targets: names of modules, "default" for every layer that can take an adapter,
            "all-linear", a regular expression, or None for the method's own choice.
        trained_too: names of modules to train in full, such as a new classifier.
    """
    check_method(method, settings)
    if method == FULL:
        return model.requires_grad_(True)
    named = default_targets(model) if targets == DEFAULT else targets
    config = method_config(method, settings, named)
    if trained_too:
        config.modules_to_save = list(trained_too)
    try:
        with warnings.catch_warnings():
            # PEFT asks transformers by the old name; nobody who runs a recipe can change that.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            wrapped: PeftModel = get_peft_model(model, config)
    except (ValueError, TypeError, KeyError) as error:
        places = "targets of a recipe's method, --targets of `manticore adapt coverage`"
        hint = f" ({places}.)" if targets is None and "target_modules" in str(error) else ""
        raise ValueError(f"{method} cannot adapt {type(model).__name__}: {error}{hint}") from error
    return wrapped


def trainable_parameters(model: nn.Module) -> int:
    """Number of parameters that training would change."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _settings_of(method: str) -> list[str]:
    fields = dataclasses.fields(_config_class(method))
    return [field.name for field in fields if field.init and field.name not in _OURS]


def _config_class(method: str) -> type[PeftConfig]:
    known = _by_name()
    if method in known:
        return known[method]
    if method.upper() in PeftType.__members__:
        raise ValueError(
            f"{method} has no target_modules: it learns a prompt or combines adapters. "
            f"Choose from {', '.join(method_names())}."
        )
    raise ValueError(
        f"Unknown method '{method}'.{did_you_mean(method, known)} Known to peft "
        f"{peft.__version__}: {', '.join(method_names())}."
    )


def _by_name() -> dict[str, type[PeftConfig]]:
    return {
        str(kind.value).lower(): cls
        for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if any(field.name == "target_modules" for field in dataclasses.fields(cls))
    }
