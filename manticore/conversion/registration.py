"""Tell transformers' Auto classes about converted models, no earlier than is safe.

`manticore/__init__.py` has `register_config` called after transformers' `configuration_auto` was
imported. The models follow when a configuration is made (`load_models`), as for the hybrids.
"""

from __future__ import annotations

import importlib
import sys

_CONFIGURATION = "manticore.conversion.configuration_converted"
_MODELING = "manticore.conversion.modeling_converted"

_MODELS = {"AutoModel": "ConvertedModel", "AutoModelForCausalLM": "ConvertedForCausalLM"}


def register_config(_imported: object = None) -> None:
    """Register `ConvertedConfig` with `AutoConfig`."""
    ours = sys.modules.get(_CONFIGURATION)
    if ours is not None and not hasattr(ours, "ConvertedConfig"):
        return  # it is being imported, and its own hook calls again at its end
    from transformers.models.auto.configuration_auto import AutoConfig

    from manticore.conversion.configuration_converted import ConvertedConfig

    AutoConfig.register(ConvertedConfig.model_type, ConvertedConfig, exist_ok=True)


def register_models(_imported: object = None) -> None:
    """Register the model classes if their module is imported by now."""
    from transformers.models.auto import modeling_auto

    from manticore.conversion.configuration_converted import ConvertedConfig

    for auto_name, class_name in _MODELS.items():
        model_class = getattr(sys.modules.get(_MODELING), class_name, None)
        if model_class is not None:
            getattr(modeling_auto, auto_name).register(ConvertedConfig, model_class, exist_ok=True)


def load_models() -> None:
    """Import the modeling module, whose hook then registers its classes."""
    importlib.import_module(_MODELING)
