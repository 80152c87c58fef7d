"""Tell transformers' Auto classes about the models built from mixers, no earlier than is safe.

`manticore/__init__.py` has `register_config` called after transformers' `configuration_auto` was
imported. The models follow when a configuration is made (`load_models`), as for the hybrids.
"""

from __future__ import annotations

import importlib
import sys

_CONFIGURATION = "manticore.models.configuration_mixer_lm"
_MODELING = "manticore.models.modeling_mixer_lm"
_CLASSIFIER = "manticore.models.mixer_classifier"

# Auto class -> (module, class) that it builds.
_MODELS = {
    "AutoModel": (_MODELING, "MixerModel"),
    "AutoModelForCausalLM": (_MODELING, "MixerForCausalLM"),
    "AutoModelForSequenceClassification": (_CLASSIFIER, "MixerForSequenceClassification"),
}


def register_config(_imported: object = None) -> None:
    """Register `MixerLMConfig` with `AutoConfig`."""
    ours = sys.modules.get(_CONFIGURATION)
    if ours is not None and not hasattr(ours, "MixerLMConfig"):
        return  # it is being imported, and its own hook calls again at its end
    from transformers.models.auto.configuration_auto import AutoConfig

    from manticore.models.configuration_mixer_lm import MixerLMConfig

    AutoConfig.register(MixerLMConfig.model_type, MixerLMConfig, exist_ok=True)


def register_models(_imported: object = None) -> None:
    """Register those model classes whose modules are imported by now."""
    from transformers.models.auto import modeling_auto

    from manticore.models.configuration_mixer_lm import MixerLMConfig

    for auto_name, (module_name, class_name) in _MODELS.items():
        model_class = getattr(sys.modules.get(module_name), class_name, None)
        if model_class is not None:
            auto_class = getattr(modeling_auto, auto_name)
            auto_class.register(MixerLMConfig, model_class, exist_ok=True)


def load_models() -> None:
    """Import the modeling modules, whose hooks then register their classes."""
    for module_name in dict.fromkeys(module for module, _ in _MODELS.values()):
        importlib.import_module(module_name)
