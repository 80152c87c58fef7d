"""Where the Auto classes of transformers find the models built from mixers."""

from __future__ import annotations

from manticore.models.auto_registration import AutoRegistration

_MODELING = "manticore.models.modeling_mixer_lm"

_MIXERS = AutoRegistration(
    ("manticore.models.configuration_mixer_lm", "MixerLMConfig"),
    {
        "AutoModel": (_MODELING, "MixerModel"),
        "AutoModelForCausalLM": (_MODELING, "MixerForCausalLM"),
        "AutoModelForSequenceClassification": (
            "manticore.models.mixer_classifier",
            "MixerForSequenceClassification",
        ),
    },
)
register_config = _MIXERS.register_config
register_models = _MIXERS.register_models
load_models = _MIXERS.load_models
