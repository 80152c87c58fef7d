"""Whether a text is encoded in the tokens that the source knows: else every copied row is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from manticore.text.tokenizers import check_same_tokenizer, load_tokenizer


def check_ids(texts: Iterable[Tensor], vocab_size: int) -> None:
    """Raise ValueError if token ids, of any shape, are none, or not in the source's table."""
    texts = list(texts)
    for ids in texts:
        if ids.is_floating_point() or (ids.numel() and int(ids.min()) < 0):
            raise ValueError(f"Token ids are whole numbers from 0 on, not {ids.flatten()[:4]}.")
    highest = max((int(ids.max()) for ids in texts if ids.numel()), default=-1)
    if highest >= vocab_size:
        raise ValueError(
            f"The text holds token {highest}, but the source's vocabulary ends at "
            f"{vocab_size - 1}. Encode the text with the source's own tokenizer."
        )


def check_tokenizer(
    source: str | Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Raise unless a tokenizer is the source's own, or could be where the source brings none.

    Args:
        source: folder of the source.
        config: of the source.
        tokenizer: what the text is encoded with.

    Raises:
        ValueError: they differ, with the first token in which they do.
    """
    if (Path(source) / "tokenizer.json").is_file():
        check_same_tokenizer(load_tokenizer(source), tokenizer)
    elif len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, but the source's vocabulary ends at "
            f"{config.vocab_size - 1}. Encode the text with the source's own tokenizer."
        )
