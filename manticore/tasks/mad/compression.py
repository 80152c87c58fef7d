"""Compression: keep a whole sequence in one vector, from which a decoder restores it.

Poli et al., 2024 (arXiv:2403.17844), section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from manticore.tasks.checks import check_noise, check_vocabulary, check_whole
from manticore.tasks.task import IGNORE, Request, Rows, Task


@dataclass(frozen=True, kw_only=True)
class CompressionSettings:
    """Compression."""

    vocab_size: int = 16
    """Content, noise, and last the token at which the sequence is compressed."""
    seq_len: int = 32
    """Tokens of an example, the compression token included."""
    noise_vocab_size: int = 0
    """Tokens that need not be kept."""
    frac_noise: float = 0.0
    """Probability that a token is noise."""

    @property
    def n_content(self) -> int:
        """Content is 0 to n_content - 1."""
        return self.vocab_size - 1 - self.noise_vocab_size

    @property
    def example_length(self) -> int:
        """Input tokens."""
        return self.seq_len

    def __post_init__(self) -> None:
        check_noise(self.frac_noise, self.noise_vocab_size)
        check_vocabulary(self.vocab_size, 1, self.noise_vocab_size, 2, "content")
        check_whole("seq_len", self.seq_len, 2, "one token and the compression token")


def draw_compression(
    rng: np.random.Generator, rows: int, settings: CompressionSettings, request: Request
) -> Rows:
    """Draw rows of compression.

    ```
    inputs:   a b n c |     uniform content, n is noise, "|" the compression token
    targets:  a b . c |     "." is -100: noise need not be restored
    ```

    The model reads all of it and predicts every position from what it holds at "|". mad-lab
    scores the noise too.
    """
    s = settings
    inputs = np.empty((rows, s.seq_len), dtype=np.int64)
    inputs[:, :-1] = rng.integers(s.n_content, size=(rows, s.seq_len - 1), dtype=np.int32)
    inputs[:, -1] = s.vocab_size - 1
    if not s.frac_noise:
        return Rows(inputs, inputs)
    noise = np.zeros(inputs.shape, dtype=bool)
    noise[:, :-1] = rng.random((rows, s.seq_len - 1)) < s.frac_noise
    count = np.count_nonzero(noise)
    inputs[noise] = rng.integers(s.n_content, s.n_content + s.noise_vocab_size, size=count)
    return Rows(inputs, inputs if request.follows_mad_lab else np.where(noise, IGNORE, inputs))


def naive_compression(
    rng: np.random.Generator, settings: CompressionSettings, request: Request
) -> tuple[list[int], list[int]]:
    """Draw one example of compression, token by token."""
    s = settings
    inputs: list[int] = []
    targets: list[int] = []
    for _ in range(s.seq_len - 1):
        is_noise = rng.random() < s.frac_noise
        first, size = (s.n_content, s.noise_vocab_size) if is_noise else (0, s.n_content)
        inputs.append(first + int(rng.integers(size)))
        is_scored = not is_noise or request.follows_mad_lab
        targets.append(inputs[-1] if is_scored else IGNORE)
    return [*inputs, s.vocab_size - 1], [*targets, s.vocab_size - 1]


def _chance(settings: CompressionSettings) -> float:
    """The compression token is always right; noise is not counted."""
    s = settings
    content = (s.seq_len - 1) * (1 - s.frac_noise)
    return (content / s.n_content + 1) / (content + 1)


COMPRESSION = Task(
    name="compression",
    version=1,
    settings=CompressionSettings,
    draw=draw_compression,
    naive=naive_compression,
    chance=_chance,
    model_kind="autoencoder",
)
