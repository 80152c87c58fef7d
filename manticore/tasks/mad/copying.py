"""Selective copying: repeat the content in order and leave out the blanks between.

Poli et al., 2024 (arXiv:2403.17844), section 3.1; after Gu and Dao, 2023 (arXiv:2312.00752).

Legend: R rows, C tokens to copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from manticore.tasks.checks import check_vocabulary, check_whole
from manticore.tasks.drawing import draw_subset
from manticore.tasks.task import IGNORE, Request, Rows, Task


@dataclass(frozen=True, kw_only=True)
class CopyingSettings:
    """Selective copying."""

    vocab_size: int = 16
    """Content, then the blank, then the copy token."""
    seq_len: int = 256
    """Tokens of an example: content, blanks, copy token, and room for the copy."""
    num_tokens_to_copy: int = 16
    """Content tokens."""

    @property
    def n_content(self) -> int:
        """Content is 0 to n_content - 1."""
        return self.vocab_size - 2

    @property
    def body(self) -> int:
        """Tokens before the copy token: content and the blanks between."""
        return self.seq_len - self.num_tokens_to_copy - 1

    @property
    def example_length(self) -> int:
        """Input tokens."""
        return self.seq_len

    def __post_init__(self) -> None:
        check_vocabulary(self.vocab_size, 2, 0, 2, "content")
        count = self.num_tokens_to_copy
        check_whole("num_tokens_to_copy", count, 1)
        why = f"{count} tokens, a blank or more, the copy token, and {count} places for the copy"
        check_whole("seq_len", self.seq_len, 2 * count + 2, why)


def draw_copying(
    rng: np.random.Generator, rows: int, settings: CopyingSettings, request: Request
) -> Rows:
    """Draw rows of selective copying.

    ```
    inputs:   _ a _ _ b _ | _ _     content, "_" is blank, "|" the copy token
    targets:  . . . . . . . a b     "." is -100 and is not scored
    ```

    Every placement of the content before "|" is equally likely. In mad-lab a blank falls before
    one of the tokens, all tokens equally likely, and none after the last.
    """
    s, count = settings, settings.num_tokens_to_copy
    content = rng.integers(s.n_content, size=(rows, count))
    places = _places_before_a_token if request.follows_mad_lab else draw_subset
    inputs = np.full((rows, s.seq_len), s.vocab_size - 2)
    np.put_along_axis(inputs, places(rng, rows, count, s.body), content, axis=1)
    inputs[:, s.body] = s.vocab_size - 1
    targets = np.full((rows, s.seq_len), IGNORE)
    targets[:, -count:] = content
    return Rows(inputs, targets)


def naive_copying(
    rng: np.random.Generator, settings: CopyingSettings, request: Request
) -> tuple[list[int], list[int]]:
    """Draw one example of selective copying, token by token."""
    s, count = settings, settings.num_tokens_to_copy
    content = rng.integers(s.n_content, size=count).tolist()
    blank = s.vocab_size - 2
    if request.follows_mad_lab:
        before = rng.integers(count, size=s.body - count).tolist()
        body = []
        for place, token in enumerate(content):
            body += [blank] * before.count(place) + [token]
    else:
        is_content = rng.permutation([True] * count + [False] * (s.body - count))
        tokens = iter(content)
        body = [next(tokens) if here else blank for here in is_content]
    inputs = [*body, s.vocab_size - 1, *[blank] * count]
    return inputs, [IGNORE] * (s.body + 1) + content


def _places_before_a_token(
    rng: np.random.Generator, rows: int, count: int, size: int
) -> np.ndarray:
    """Places (R, C) of the content when each blank chooses a token to stand before."""
    before = rng.integers(count, size=(rows, size - count), dtype=np.int32)
    before += np.arange(rows, dtype=np.int32)[:, None] * count
    blanks = np.bincount(before.ravel(), minlength=rows * count).reshape(rows, count)
    return np.cumsum(blanks, axis=1) + np.arange(count)


COPYING = Task(
    name="selective-copying",
    version=1,
    settings=CopyingSettings,
    draw=draw_copying,
    naive=naive_copying,
    chance=lambda settings: 1 / settings.n_content,
)
