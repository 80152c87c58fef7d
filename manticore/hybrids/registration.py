"""Where the Auto classes of transformers find the hybrids; see `models/auto_registration.py`."""

from __future__ import annotations

from manticore.models.auto_registration import AutoRegistration

_BACKBONE = "manticore.hybrids.modeling_manticore"
_CLASSIFICATION = "manticore.hybrids.modeling_classification"

_HYBRIDS = AutoRegistration(
    ("manticore.hybrids.configuration_manticore", "ManticoreConfig"),
    {
        "AutoModel": (_BACKBONE, "ManticoreModel"),
        "AutoModelForCausalLM": (_BACKBONE, "ManticoreForCausalLM"),
        "AutoModelForSequenceClassification": (
            _CLASSIFICATION,
            "ManticoreForSequenceClassification",
        ),
        "AutoModelForTokenClassification": (_CLASSIFICATION, "ManticoreForTokenClassification"),
    },
)
register_config = _HYBRIDS.register_config
register_models = _HYBRIDS.register_models
load_models = _HYBRIDS.load_models
