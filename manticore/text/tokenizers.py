"""Tokenizers: loading one, training a byte-level BPE, and telling whether two are the same."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
N_BYTES = 256


def tokenizer_beside(model: str | Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer that comes with a model, in its folder or on the hub; None where there is none.

    On the hub none is also what cannot be reached.
    """
    local = Path(model).expanduser()
    if local.exists():
        return load_tokenizer(local) if (local / "tokenizer.json").is_file() else None
    try:
        return load_tokenizer(model)
    except ValueError:
        return None


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a folder, a tokenizer.json file or a name on the hub."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    local = Path(path).expanduser()
    if local.is_file():
        return PreTrainedTokenizerFast(tokenizer_file=str(local))
    if local.is_dir() and not (local / "tokenizer.json").is_file():
        raise ValueError(
            f"The folder {path} holds no tokenizer.json. Save one there with "
            f"`tokenizer.save_pretrained({str(path)!r})`, or train one with `train_bpe`."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(local) if local.exists() else str(path), trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No tokenizer could be loaded from {path}: {str(error).splitlines()[0]} Give a folder "
            f"with tokenizer.json, such a file, or a name on the Hugging Face hub."
        ) from error
    return check_fast(tokenizer)


def train_bpe(
    texts: Iterable[str], vocab_size: int, path: str | Path | None = None
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that gives every text back exactly, and save it if `path` is given.

    The vocabulary is `<|endoftext|>` (0), the 256 bytes, and merges, most frequent first. The
    same texts in the same order give the same file.
    """
    if vocab_size < N_BYTES + 1:
        raise ValueError(
            f"vocab_size={vocab_size} has no room for the {N_BYTES} bytes and {END_OF_TEXT}. "
            f"Choose {N_BYTES + 1} or more."
        )
    from transformers import PreTrainedTokenizerFast

    first = next(iterator := iter(texts), None)
    if first is None:
        raise ValueError("There is no text to train a tokenizer on. Give at least one.")
    model = _learn_merges(itertools.chain([first], iterator), vocab_size)
    if model.get_vocab_size() != vocab_size:
        raise ValueError(
            f"The text is enough for {model.get_vocab_size()} tokens, not vocab_size="
            f"{vocab_size}. Give more text or a smaller vocabulary."
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    if path is not None:
        tokenizer.save_pretrained(str(path))
    return tokenizer


def _learn_merges(texts: Iterable[str], vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return model


def balanced(texts_by_kind: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a sample of texts with as many bytes of each kind as the smallest kind has.

    The sample and its order follow from hashes of the texts, not from their order, so that no
    file is preferred for coming first. Kinds differ by at most one text.
    """
    ranked = {
        kind: sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
        for kind, texts in texts_by_kind.items()
    }
    budget = min(sum(len(text.encode()) for text in texts) for texts in ranked.values())
    chosen: list[str] = []
    for texts in ranked.values():
        n_bytes = 0
        for text in texts:
            if n_bytes >= budget:
                break
            chosen.append(text)
            n_bytes += len(text.encode())
    return chosen


def check_fast(tokenizer: object) -> PreTrainedTokenizerFast:
    """Return the tokenizer if it is a fast one (with offsets), else raise ValueError."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} is not a fast tokenizer. Convert it to a "
            f"tokenizer.json, for example with `AutoTokenizer.from_pretrained(name, use_fast=True)`"
            f" and `save_pretrained`."
        )
    return tokenizer


def same_tokenizer(a: PreTrainedTokenizerFast, b: PreTrainedTokenizerFast) -> bool:
    """Tell whether two tokenizers cut every text alike and call the pieces by the same numbers."""
    return _meaning(a) == _meaning(b) and a.eos_token_id == b.eos_token_id


def check_same_tokenizer(a: PreTrainedTokenizerFast, b: PreTrainedTokenizerFast) -> None:
    """Raise ValueError, saying in what they differ, unless two tokenizers are the same."""
    if same_tokenizer(a, b):
        return
    words, others = a.get_vocab(), b.get_vocab()
    differing = sorted(
        (number, word) for word, number in words.items() if others.get(word) != number
    )
    if differing:
        number, word = differing[0]
        other = {number: word for word, number in others.items()}.get(number)
        reason = f"token {number} is {word!r} in one and {other!r} in the other"
    elif len(words) != len(others):
        reason = f"they have {len(words)} and {len(others)} tokens"
    elif a.eos_token_id != b.eos_token_id:
        reason = f"their end-of-text tokens are {a.eos_token!r} and {b.eos_token!r}"
    else:
        reason = "the same tokens are cut by different rules"
    raise ValueError(
        f"The tokenizers differ: {reason}. Use the tokenizer of the model, or make one model the "
        f"host of the vocabulary."
    )


def continuation(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], n_prompt: int) -> str:
    """Decode what comes after the first `n_prompt` tokens, as it reads behind them.

    SentencePiece drops the space before the first word that it decodes, so a continuation that is
    decoded alone would stick to its prompt.
    """
    prompt, whole, rest = (
        str(tokenizer.decode(part, skip_special_tokens=True))
        for part in (ids[:n_prompt], ids, ids[n_prompt:])
    )
    return whole[len(prompt) :] if whole.startswith(prompt) else rest


def check_round_trip(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> None:
    """Raise ValueError with the first text that encoding and decoding changes."""
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if back != text:
            raise ValueError(f"The tokenizer turns {text[:80]!r} into {back[:80]!r}.")


def _meaning(tokenizer: PreTrainedTokenizerFast) -> dict:
    """Return the parts of tokenizer.json that decide the numbers of a text."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: parts.get(key) for key in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
