"""How long a sequence a component takes."""

from torch import Tensor
from transformers import PreTrainedConfig

from manticore.models.family import RefusedError
from manticore.models.rotary_lengths import FIXED_ANGLES, crosses, is_dynamic, longrope_border
from manticore.models.supported import check_supported


def max_positions(config: PreTrainedConfig) -> int | None:
    """Longest sequence the model was built for; None when it has no such length."""
    if check_supported(config).is_recurrent:
        return None
    return config.max_position_embeddings


def has_position_table(config: PreTrainedConfig) -> bool:
    """Whether positions come from a learned table, which no sequence can outgrow."""
    return check_supported(config).has_position_table(config)


def longest_sequence(config: PreTrainedConfig) -> int | None:
    """Longest sequence that can be run; None when any can.

    Rotary models run past `max_positions`, with worse predictions but without an error, unless
    their angles change with the length and we cannot make them right (`rotary_lengths`).
    """
    if _has_table(config) or is_dynamic(config):
        return max_positions(config)
    return longrope_border(config) if check_supported(config).rotary is None else None


def check_length(config: PreTrainedConfig, length: int) -> None:
    """Raise when a sequence of `length` tokens is longer than the component takes."""
    limit = longest_sequence(config)
    if limit is None or length <= limit:
        return
    start = f"A sequence of {length} tokens does not fit: the {config.model_type} component has"
    end = f"Use at most {limit} tokens (prompt and new ones together), or a component"
    if _has_table(config):
        raise ValueError(f"{start} a table of {limit} positions. {end} without a position table.")
    raise RefusedError(
        f"{start} rotary positions whose angles change with the length beyond {limit} tokens, so "
        f"that caches and batches go wrong. {end} with fixed angles ({', '.join(FIXED_ANGLES)})."
    )


def _has_table(config: PreTrainedConfig) -> bool:
    return has_position_table(config) or check_supported(config).has_table_of_angles


def outgrows_past(config: PreTrainedConfig, position_ids: Tensor) -> bool:
    """Whether new tokens behind a cache need other rotary angles than the cached ones have.

    Args:
        position_ids: (batch or 1, seq) of the new tokens.
    """
    border = longrope_border(config)
    return border is not None and crosses(border, position_ids)
