"""Which models the doctor can examine: those that predict the next token from the ones before."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING


def check_causal(config: Any, name: str) -> None:
    """Raise for an encoder, an encoder-decoder or a model without a language head.

    BERT and its like count as causal language models in transformers, but are none until their
    config says `is_decoder`: without it every token sees those behind it.
    """
    kind = _other_kind(config)
    if kind is not None:
        raise ValueError(
            f"{name}: a {config.model_type} model is {kind}. The doctor examines causal language "
            "models. Give one that predicts the next token, such as a llama, mamba or hybrid; "
            "`manticore doctor --family all --dry-run` lists families."
        )


def _other_kind(config: Any) -> str | None:
    if getattr(config, "is_encoder_decoder", False):
        return "an encoder-decoder"
    is_decoder = getattr(config, "is_decoder", getattr(config, "causal", True))
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not is_decoder:
        return "an encoder"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "a model without a head for the next token"
    return None
