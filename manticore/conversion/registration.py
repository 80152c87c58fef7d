"""Where the Auto classes of transformers find converted models."""

from __future__ import annotations

from manticore.models.auto_registration import AutoRegistration

_MODELING = "manticore.conversion.modeling_converted"

_CONVERTED = AutoRegistration(
    ("manticore.conversion.configuration_converted", "ConvertedConfig"),
    {
        "AutoModel": (_MODELING, "ConvertedModel"),
        "AutoModelForCausalLM": (_MODELING, "ConvertedForCausalLM"),
    },
)
register_config = _CONVERTED.register_config
register_models = _CONVERTED.register_models
load_models = _CONVERTED.load_models
