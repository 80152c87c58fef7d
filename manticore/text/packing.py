"""Packing: documents as rows of equal length, and how many bytes of text each row predicts.

    d1 d1 d1 ; d2 d2 | d2 ; d3 d3 d3 d3 | ...      ";" ends a document, "|" a row of 6

A row's first token is given and the others are predicted (the model shifts the labels), so a
row of T tokens is T - 1 predictions. Bits per byte is then exact: the nats of those predictions
over ln 2 times the bytes that those tokens stand for. An end of text is predicted but has no
bytes: knowing where a document ends is part of the price.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from manticore.text.documents import Document
from manticore.text.tokenizers import check_fast

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

CHUNK = 4096
"""Documents tokenised at a time: bounds the memory that offsets take."""


@dataclass(frozen=True)
class PackedText:
    """Rows of tokens and, beside them, the bytes of text that each token stands for."""

    rows: np.ndarray
    """(rows, seq_len) int32 token ids."""
    token_bytes: np.ndarray
    """(rows, seq_len) int32 bytes of UTF-8 text for each token; 0 for an end of text."""
    n_dropped: int = 0
    """Tokens at the end that did not fill a row."""

    @property
    def n_rows(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    @property
    def seq_len(self) -> int:
        """Return the length of a row in tokens."""
        return self.rows.shape[1]

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens in all rows."""
        return self.rows.size

    @property
    def n_predicted(self) -> int:
        """Return the number of tokens that are predicted: all but the first of each row."""
        return self.n_rows * (self.seq_len - 1)

    @property
    def row_bytes(self) -> np.ndarray:
        """Return the bytes of the predicted tokens of each row, (rows,) int64."""
        return self.token_bytes[:, 1:].sum(axis=1, dtype=np.int64)

    @property
    def n_bytes(self) -> int:
        """Return the bytes of all predicted tokens."""
        return int(self.row_bytes.sum())

    def take(self, n_rows: int) -> PackedText:
        """Return the first `n_rows` rows."""
        kept = max(0, self.n_rows - n_rows) * self.seq_len
        return PackedText(self.rows[:n_rows], self.token_bytes[:n_rows], self.n_dropped + kept)

    def bits_per_byte(self, nats_per_token: float) -> float:
        """Convert the mean loss over all predicted tokens, in nats, to bits per byte of text."""
        return nats_per_token * self.n_predicted / (math.log(2) * self.n_bytes)


def pack(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerFast,
    seq_len: int,
    *,
    boundary_id: int | None = None,
) -> PackedText:
    """Tokenise documents, put a boundary after each, and cut the stream into rows.

    Args:
        documents: in the order in which they are laid out.
        tokenizer: a fast tokenizer. Special tokens spelled out in the text are taken as text.
        seq_len: tokens in a row, 2 or more. What does not fill the last row is dropped.
        boundary_id: the token after each document; the tokenizer's end of text by default.
    """
    if seq_len < 2:
        raise ValueError(f"seq_len={seq_len} leaves nothing to predict. Choose 2 or more.")
    boundary = tokenizer.eos_token_id if boundary_id is None else boundary_id
    if boundary is None:
        raise ValueError("The tokenizer has no end-of-text token. Give boundary_id.")
    ids: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    for document_ids, document_lengths in encode([d.text for d in documents], tokenizer):
        ids += [document_ids, np.array([boundary], np.int32)]
        lengths += [document_lengths, np.array([0], np.int32)]
    stream = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    n_rows = len(stream) // seq_len
    if n_rows == 0:
        raise ValueError(
            f"{len(documents)} documents give {len(stream)} tokens: not one row of "
            f"seq_len={seq_len}. Give more text or shorter rows."
        )
    kept = n_rows * seq_len
    token_bytes = np.concatenate(lengths)[:kept]
    return PackedText(
        stream[:kept].reshape(n_rows, seq_len),
        token_bytes.reshape(n_rows, seq_len),
        len(stream) - kept,
    )


def encode(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the token ids of each text and the bytes that each token stands for, both int32.

    The bytes of one text sum to its length in UTF-8. A character that takes several tokens is
    counted with the first of them; what a tokenizer drops (a trimmed space) with the next token,
    or with the last one at the end of the text.
    """
    backend = check_fast(tokenizer).backend_tokenizer
    before = backend.encode_special_tokens
    # "<|endoftext|>" written in a document must not become a boundary.
    backend.encode_special_tokens = True
    try:
        for start in range(0, len(texts), CHUNK):
            chunk = list(texts[start : start + CHUNK])
            for text, encoding in zip(
                chunk, backend.encode_batch(chunk, add_special_tokens=False), strict=True
            ):
                yield np.array(encoding.ids, np.int32), _token_bytes(text, encoding.offsets)
    finally:
        backend.encode_special_tokens = before


def _token_bytes(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    if not offsets:
        return np.zeros(0, np.int32)
    ends = np.maximum.accumulate(np.array(offsets, np.int64)[:, 1])
    ends[-1] = len(text)
    if not text.isascii():
        ends = _byte_positions(text)[ends]
    return np.diff(ends, prepend=0).astype(np.int32)


def _byte_positions(text: str) -> np.ndarray:
    """Return the byte at which each character of `text` starts, and the length in bytes."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    return np.concatenate([[0], np.cumsum(widths)])


def evaluation_batches(pack: PackedText, batch_size: int) -> Iterator[dict[str, Any]]:
    """Yield every row once, in order: `input_ids`, `labels` (B, T) and `bytes` (B,), int64."""
    for start in range(0, pack.n_rows, batch_size):
        chosen = np.arange(start, min(start + batch_size, pack.n_rows))
        yield as_batch(pack.rows[chosen], pack.row_bytes[chosen])


def as_batch(rows: np.ndarray, row_bytes: Iterable[int]) -> dict[str, torch.Tensor]:
    """Return rows as the batch that a Hugging Face causal language model takes."""
    import torch

    ids = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))
    # Labels are the inputs: the model itself shifts them by one.
    return {
        "input_ids": ids,
        "labels": ids.clone(),
        "bytes": torch.as_tensor(np.asarray(row_bytes, dtype=np.int64)),
    }
