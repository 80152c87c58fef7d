"""In-context recall, plain and noisy: look up the value of a key that was shown before.

The keys take the first half of the vocabulary, the values the second; each sequence has its own
pairs. Poli et al., 2024 (arXiv:2403.17844), section 3.1.

Legend: R rows, P pairs in a sequence, K keys, V values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from manticore.tasks.checks import (
    check_even,
    check_flag,
    check_noise,
    check_vocabulary,
    check_whole,
)
from manticore.tasks.drawing import choose_true, draw_noise_slots
from manticore.tasks.task import IGNORE, Request, Rows, Task

TRAILER = 2
"""Tokens of the last pair, which asks for a key that was shown."""


@dataclass(frozen=True, kw_only=True)
class RecallSettings:
    """In-context recall."""

    vocab_size: int = 16
    """Keys take the first half of the vocabulary, values the second."""
    seq_len: int = 128
    """Tokens of the pairs, the last one included."""
    multi_query: bool = True
    """Score every key that comes back; otherwise the last one only, after a copy token."""

    @property
    def noise_vocab_size(self) -> int:
        """Plain recall has no noise."""
        return 0

    @property
    def frac_noise(self) -> float:
        """Plain recall has no noise."""
        return 0.0

    @property
    def n_plain(self) -> int:
        """Keys and values together."""
        return self.vocab_size - self.noise_vocab_size - (not self.multi_query)

    @property
    def n_keys(self) -> int:
        """Keys are 0 to n_keys - 1."""
        return self.n_plain // 2

    @property
    def n_values(self) -> int:
        """Values are n_keys to n_plain - 1."""
        return self.n_plain - self.n_keys

    @property
    def n_slots(self) -> int:
        """Pairs before the last one."""
        return self.seq_len // 2 - 1

    @property
    def example_length(self) -> int:
        """Input tokens: the last value is only a target, and a copy token may join."""
        return self.seq_len - 1 + (not self.multi_query)

    def __post_init__(self) -> None:
        check_flag("multi_query", self.multi_query)
        check_noise(self.frac_noise, self.noise_vocab_size)
        special = int(not self.multi_query)
        what = "two keys and two values"
        check_vocabulary(self.vocab_size, special, self.noise_vocab_size, 4, what)
        check_whole("seq_len", self.seq_len, 4, "a pair to show and a pair to ask for")
        check_even("seq_len", self.seq_len, "keys and values come in pairs")


@dataclass(frozen=True, kw_only=True)
class NoisyRecallSettings(RecallSettings):
    """Noisy in-context recall."""

    vocab_size: int = 32
    """All tokens: keys, then values, then noise, then (single query) the copy token."""
    noise_vocab_size: int = 16
    """Tokens that are neither keys nor values."""
    frac_noise: float = 0.2
    """Probability that two noise tokens stand where a pair would."""


def draw_recall(
    rng: np.random.Generator, rows: int, settings: RecallSettings, request: Request
) -> Rows:
    """Draw rows of in-context recall, plain or noisy.

    ```
    inputs:   k1 v1 k2 v2 k1 v1 n n | k2        keys, values, noise; "|" only with a single query
    targets:   .  .  .  . v1  . . . .  v2       "." is -100 and is not scored
    ```

    A key is uniform at each slot, its value uniform in each sequence; the last key is uniform over
    the different keys shown. The target stands where the key is the input.
    """
    s, slots = settings, settings.n_slots
    keys = rng.integers(s.n_keys, size=(rows, slots))  # (R, P-1)
    value_of = rng.integers(s.n_keys, s.n_plain, size=(rows, s.n_keys))  # (R, K)
    values = np.take_along_axis(value_of, keys, axis=1)
    # mad-lab may spend the protection on the last pair, which is never noise.
    protected = slots + 1 if request.follows_mad_lab else slots
    noise = draw_noise_slots(rng, rows, slots, s.frac_noise, protected)
    first = _first_slots(np.where(noise, s.n_keys, keys), s.n_keys + 1)  # (R, K+1)
    repeated = (np.take_along_axis(first, keys, axis=1) < np.arange(slots)) & ~noise
    shown = first[:, : s.n_keys] < slots
    last_key = choose_true(rng, shown)

    sequence = np.empty((rows, s.example_length + 1), dtype=np.int64)
    sequence[:, 0 : 2 * slots : 2] = keys
    sequence[:, 1 : 2 * slots : 2] = values
    if s.frac_noise:
        body = sequence[:, : 2 * slots]
        places = np.repeat(noise, 2, axis=1)
        body[places] = rng.integers(
            s.n_plain, s.n_plain + s.noise_vocab_size, size=np.count_nonzero(places)
        )
    sequence[:, 2 * slots : -TRAILER] = s.vocab_size - 1
    sequence[:, -2] = last_key
    sequence[:, -1] = value_of[np.arange(rows), last_key]
    inputs, targets = sequence[:, :-1], sequence[:, 1:]
    if not request.scores_all:
        targets = np.full_like(inputs, IGNORE)
        if s.multi_query:
            targets[:, 0 : 2 * slots : 2] = np.where(repeated, values, IGNORE)
        targets[:, -1] = sequence[:, -1]
    has_pair = np.asarray(shown.any(axis=1))
    return Rows(inputs, targets, has_pair)


def naive_recall(
    rng: np.random.Generator, settings: RecallSettings, request: Request
) -> tuple[list[int], list[int]] | None:
    """Draw one example of in-context recall, token by token; None if all of it was noise."""
    s = settings
    protected = rng.integers(s.n_slots + 1 if request.follows_mad_lab else s.n_slots)
    value_of: dict[int, int] = {}
    sequence: list[int] = []
    targets: list[int] = []
    for slot in range(s.n_slots):
        if slot != protected and rng.random() < s.frac_noise:
            noise = rng.integers(s.n_plain, s.n_plain + s.noise_vocab_size, size=2)
            sequence += noise.tolist()
            targets += [IGNORE, IGNORE]
            continue
        key = int(rng.integers(s.n_keys))
        is_scored = key in value_of and s.multi_query
        value = value_of.setdefault(key, int(rng.integers(s.n_keys, s.n_plain)))
        sequence += [key, value]
        targets += [value if is_scored else IGNORE, IGNORE]
    if not value_of:
        return None
    key = int(rng.choice(list(value_of)))
    if not s.multi_query:
        sequence.append(s.vocab_size - 1)
        targets.append(IGNORE)
    sequence += [key, value_of[key]]
    targets.append(value_of[key])
    return sequence[:-1], sequence[1:] if request.scores_all else targets


def _first_slots(keys: np.ndarray, n_keys: int) -> np.ndarray:
    """The first slot of each key (R, n_keys); the number of slots for a key that is not there."""
    rows, slots = keys.shape
    first = np.full(rows * n_keys, slots)
    places = keys + np.arange(rows)[:, None] * n_keys
    np.minimum.at(first, places.ravel(), np.tile(np.arange(slots), rows))
    return first.reshape(rows, n_keys)


def _chance(settings: RecallSettings) -> float:
    return 1 / settings.n_values


RECALL = Task(
    name="in-context-recall",
    version=1,
    settings=RecallSettings,
    draw=draw_recall,
    naive=naive_recall,
    chance=_chance,
)
NOISY_RECALL = Task(
    name="noisy-in-context-recall",
    version=1,
    settings=NoisyRecallSettings,
    draw=draw_recall,
    naive=naive_recall,
    chance=_chance,
)
