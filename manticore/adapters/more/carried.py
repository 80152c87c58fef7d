"""What a conversion between MoRe and another adapter carries over: layers, names and settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from manticore.adapters.more.config import MoReConfig
from manticore.adapters.more.layer import MoReLayer

PREFIX = "base_model.model."
"""Before the names of modules in the weights that PEFT saves."""
_SHARED = (
    "task_type",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
)


def adapted_layers(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, MoReLayer]]:
    """Yield the layers that have the adapter, by their names in the base model."""
    found = False
    for name, module in model.named_modules():
        if isinstance(module, MoReLayer) and adapter_name in module.more_A:
            found = True
            yield name.removeprefix(PREFIX), module
    if not found:
        known = ", ".join(getattr(model, "peft_config", {})) or "none"
        raise ValueError(
            f"The model has no MoRe adapter named {adapter_name!r}. Adapters: {known}."
        )


def carried_config(model: Any, adapter_name: str) -> MoReConfig:
    """The adapter's configuration; raises for what no conversion carries."""
    settings: MoReConfig = model.peft_config[adapter_name]
    if settings.bias != "none":
        raise ValueError(
            f"bias={settings.bias!r} trained biases of the base model, which no conversion carries."
        )
    return settings


def shared_settings(config: Any) -> dict[str, Any]:
    """The settings that mean the same in all configurations."""
    return {name: getattr(config, name, None) for name in _SHARED if hasattr(config, name)}
