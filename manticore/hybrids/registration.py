"""Tell transformers' Auto classes about the hybrids, no earlier than it is safe.

`manticore/__init__.py` calls the two functions here after certain modules have been imported:

- `register_config` after transformers' `configuration_auto`, so that `AutoConfig` knows
  `model_type: manticore` however it was reached;
- `register_models` after our own modeling modules.

The models cannot be registered when transformers' `modeling_auto` is imported: that happens in the
middle of the import of transformers' own modeling code, which ours needs whole. Nobody can look a
hybrid up in `AutoModelForCausalLM` without a `ManticoreConfig`, so making one loads the models
(`load_models`). Every function may be called again: it then changes nothing.
"""

from __future__ import annotations

import importlib
import sys

_CONFIGURATION = "manticore.hybrids.configuration_manticore"
_BACKBONE = "manticore.hybrids.modeling_manticore"
_CLASSIFICATION = "manticore.hybrids.modeling_classification"

# Auto class -> (module, class) that it builds.
_MODELS = {
    "AutoModel": (_BACKBONE, "ManticoreModel"),
    "AutoModelForCausalLM": (_BACKBONE, "ManticoreForCausalLM"),
    "AutoModelForSequenceClassification": (_CLASSIFICATION, "ManticoreForSequenceClassification"),
    "AutoModelForTokenClassification": (_CLASSIFICATION, "ManticoreForTokenClassification"),
}


def register() -> None:
    """Register configuration and models now."""
    register_config()
    load_models()


def register_config(_imported: object = None) -> None:
    """Register `ManticoreConfig` with `AutoConfig`."""
    ours = sys.modules.get(_CONFIGURATION)
    if ours is not None and not hasattr(ours, "ManticoreConfig"):
        return  # it is being imported, and its own hook calls again at its end
    from transformers.models.auto.configuration_auto import AutoConfig

    from manticore.hybrids.configuration_manticore import ManticoreConfig

    AutoConfig.register(ManticoreConfig.model_type, ManticoreConfig, exist_ok=True)


def register_models(_imported: object = None) -> None:
    """Register those model classes whose modules are imported by now."""
    from transformers.models.auto import modeling_auto

    from manticore.hybrids.configuration_manticore import ManticoreConfig

    for auto_name, (module_name, class_name) in _MODELS.items():
        model_class = getattr(sys.modules.get(module_name), class_name, None)
        if model_class is not None:
            auto_class = getattr(modeling_auto, auto_name)
            auto_class.register(ManticoreConfig, model_class, exist_ok=True)


def load_models() -> None:
    """Import the modeling modules, whose hooks then register their classes."""
    for module_name in dict.fromkeys(module for module, _ in _MODELS.values()):
        importlib.import_module(module_name)
