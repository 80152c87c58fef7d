"""Examples as tokens with labels: loss on answers only, long ones counted, several in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from manticore.config.example_sections import AdaptDataConfig
from manticore.text.packing import encode
from manticore.tuning.examples import Example
from manticore.tuning.templates import chat_segments

IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """One row of a batch."""

    ids: np.ndarray
    """(T,) int32 tokens."""
    labels: np.ndarray
    """(T,) int32 the same tokens, -100 where nothing is scored; of a classifier one number."""
    prompt: np.ndarray
    """(P,) int32 what generation starts from."""
    scored_bytes: int
    """Bytes of text that the scored tokens stand for."""
    reference: str = ""
    """What a generated answer is compared with."""

    @property
    def n_scored(self) -> int:
        """Tokens that a loss averages over: the first of a row is never predicted."""
        return int((self.labels[1:] != IGNORED).sum())


def encode_examples(
    examples: Sequence[Example],
    tokenizer: Any,
    config: AdaptDataConfig,
    labels: Sequence[str] = (),
) -> tuple[list[Encoded], int]:
    """Tokenise examples; returns those that fit into `seq_len`, and how many did not.

    Prompt and answer are tokenised apart, so that training sees what generation will see.
    """
    if config.format == "classification":
        rows = _classified(examples, tokenizer, labels)
    elif config.format == "chat":
        rows = [_conversation(example, tokenizer, config) for example in examples]
    else:
        rows = _instructions(examples, tokenizer)
    fitting = [row for row in rows if len(row.ids) <= config.seq_len]
    if not fitting:
        shortest = min(len(row.ids) for row in rows)
        raise ValueError(
            f"No example fits into seq_len={config.seq_len}: the shortest has {shortest} tokens. "
            "Choose a larger data.seq_len."
        )
    return fitting, len(rows) - len(fitting)


def pack_rows(rows: Sequence[Encoded], seq_len: int) -> list[Encoded]:
    """Put whole examples together into rows of at most `seq_len` tokens, first fit.

    An example sees those before it in its row, as in pretraining; it is never cut. The first
    token of an example that follows another is not scored: nothing in the prompt predicts it.
    """
    bins: list[list[Encoded]] = []
    room: list[int] = []
    for row in rows:
        place = next((i for i, left in enumerate(room) if left >= len(row.ids)), None)
        if place is None:
            bins.append([row])
            room.append(seq_len - len(row.ids))
        else:
            bins[place].append(row)
            room[place] -= len(row.ids)
    return [_joined(members) for members in bins]


def start_tokens(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before a text, such as a begin-of-text token."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a", add_special_tokens=True)
    place = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return list(whole[:place])


def end_token(tokenizer: Any) -> int:
    """The token that ends an answer."""
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no end-of-text token, so no answer could end.")
    return int(tokenizer.eos_token_id)


def _instructions(examples: Sequence[Example], tokenizer: Any) -> list[Encoded]:
    start, end = start_tokens(tokenizer), end_token(tokenizer)
    prompts = list(encode([example.prompt for example in examples], tokenizer))
    answers = list(encode([example.answer for example in examples], tokenizer))
    rows = []
    for example, (prompt, _), (answer, _) in zip(examples, prompts, answers, strict=True):
        before = np.concatenate([np.array(start, np.int32), prompt])
        ids = np.concatenate([before, answer, np.array([end], np.int32)])
        if not len(before):  # nothing would predict the first token of the answer
            raise ValueError(f"{example.source} has an empty prompt. Mend data.prompt.")
        labels = ids.copy()
        labels[: len(before)] = IGNORED
        n_bytes = len(example.answer.encode())
        rows.append(Encoded(ids, labels, before, n_bytes, example.reference))
    return rows


def _conversation(example: Example, tokenizer: Any, config: AdaptDataConfig) -> Encoded:
    segments = chat_segments(tokenizer, example.messages, config.chat_template)
    ids: list[int] = []
    labels: list[int] = []
    for segment in segments:
        tokens = tokenizer.encode(segment.text, add_special_tokens=False)
        ids += tokens
        labels += tokens if segment.is_answer else [IGNORED] * len(tokens)
    n_bytes = sum(len(s.text.encode()) for s in segments if s.is_answer)
    array = np.array(ids, np.int32)
    return Encoded(array, np.array(labels, np.int32), array[:0], n_bytes)


def _classified(
    examples: Sequence[Example], tokenizer: Any, labels: Sequence[str]
) -> list[Encoded]:
    numbers = {label: number for number, label in enumerate(labels)}
    unknown = sorted({example.answer for example in examples} - set(numbers))
    if unknown:
        raise ValueError(
            f"Labels {', '.join(unknown[:5])} are not among {', '.join(labels)}. Set data.labels."
        )
    encoded = tokenizer([example.prompt for example in examples])["input_ids"]
    return [
        Encoded(
            np.array(ids, np.int32),
            np.array([numbers[example.answer]], np.int32),
            np.zeros(0, np.int32),
            len(example.prompt.encode()),
            example.answer,
        )
        for ids, example in zip(encoded, examples, strict=True)
    ]


def _joined(members: Sequence[Encoded]) -> Encoded:
    labels: list[np.ndarray] = []
    for number, member in enumerate(members):
        own = member.labels.copy()
        if number:
            own[0] = IGNORED
        labels.append(own)
    return Encoded(
        np.concatenate([member.ids for member in members]),
        np.concatenate(labels),
        np.zeros(0, np.int32),
        sum(member.scored_bytes for member in members),
    )
