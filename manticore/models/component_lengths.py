"""How long a sequence a component takes."""

from transformers import PreTrainedConfig

from manticore.models.families import check_supported


def max_positions(config: PreTrainedConfig) -> int | None:
    """Longest sequence the model was built for; None when it has no such length."""
    if check_supported(config).is_recurrent:
        return None
    return config.max_position_embeddings


def has_position_table(config: PreTrainedConfig) -> bool:
    """Whether positions come from a learned table, which no sequence can outgrow."""
    return check_supported(config).has_position_table(config)


def check_length(config: PreTrainedConfig, length: int) -> None:
    """Raise when a sequence of `length` tokens does not fit a learned position table.

    Rotary models run past `max_positions`, with worse predictions but without an error.
    """
    limit = max_positions(config)
    if has_position_table(config) and limit is not None and length > limit:
        raise ValueError(
            f"A sequence of {length} tokens does not fit: the {config.model_type} component has a "
            f"table of {limit} positions. Use at most {limit} tokens (prompt and new ones "
            "together), or a component without a position table."
        )
