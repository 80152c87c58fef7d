"""The configs of a hybrid's components, as the hybrid's own config holds them."""

import copy
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig


def as_config(config: PreTrainedConfig | dict[str, Any]) -> PreTrainedConfig:
    """Rebuild a component's config from its dictionary; configs pass through."""
    if isinstance(config, PreTrainedConfig):
        return config
    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"A component has model_type {model_type!r}, which this transformers does not know. "
            "Update transformers or choose another component."
        )
    plain = {key: value for key, value in config.items() if key != "model_type"}
    return CONFIG_MAPPING[model_type].from_dict(plain)


def with_vocabulary(config: PreTrainedConfig, vocab_size: int) -> PreTrainedConfig:
    """The config with tables of this many rows: itself if it has them, else a copy."""
    pad = getattr(config, "pad_token_id", None)
    has_row = pad is None or pad < vocab_size
    if config.vocab_size == vocab_size and has_row:
        return config
    config = copy.deepcopy(config)
    config.vocab_size = vocab_size
    if not has_row:  # its table would be built around a row that was cut
        config.pad_token_id = None
    return config


def is_tied(config: PreTrainedConfig) -> bool:
    """Whether a component's head is its embedding table."""
    return bool(getattr(config, "tie_word_embeddings", False))
