"""Multi-query associative recall: all pairs first, then each key once more, at varying distance.

Arora et al., 2023, "Zoology" (arXiv:2312.04927), section 4 and appendix. Not part of the MAD score.

Legend: R rows, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from manticore.tasks.checks import check_even, check_flag, check_whole
from manticore.tasks.drawing import draw_distinct
from manticore.tasks.task import IGNORE, Request, Rows, Task


@dataclass(frozen=True, kw_only=True)
class MqarSettings:
    """Multi-query associative recall."""

    vocab_size: int = 8192
    """Filler 0, then keys in the first half, values in the second."""
    seq_len: int = 64
    """Input tokens."""
    num_kv_pairs: int = 4
    """Different keys of an example; each is shown once and asked for once."""
    power_a: float = 0.01
    """Keys are asked for at distance d with weight d^(power_a - 1); 1 is uniform."""
    random_non_queries: bool = True
    """Fill the places where nothing is asked with random tokens instead of 0."""

    @property
    def first_value(self) -> int:
        """Keys are 1 to first_value - 1, values the rest."""
        return self.vocab_size // 2

    @property
    def n_values(self) -> int:
        """Tokens that are values."""
        return self.vocab_size - self.first_value

    @property
    def example_length(self) -> int:
        """Input tokens."""
        return self.seq_len

    def __post_init__(self) -> None:
        check_flag("random_non_queries", self.random_non_queries)
        check_whole("num_kv_pairs", self.num_kv_pairs, 1)
        why = f"{self.num_kv_pairs} pairs take two tokens to show and two to ask for"
        check_whole("seq_len", self.seq_len, 4 * self.num_kv_pairs, why)
        check_even("seq_len", self.seq_len, "keys and values come in pairs")
        least = max(self.seq_len + 1, 2 * (self.num_kv_pairs + 1))
        why = "Zoology wants more tokens than positions, and each pair its own"
        check_whole("vocab_size", self.vocab_size, least, why)
        number = isinstance(self.power_a, int | float) and not isinstance(self.power_a, bool)
        if not number or not 0 < self.power_a <= 1:
            raise ValueError(
                f"power_a={self.power_a!r} is not a power. Allowed: above 0, up to 1 (uniform)."
            )


def draw_mqar(
    rng: np.random.Generator, rows: int, settings: MqarSettings, request: Request
) -> Rows:
    """Draw rows of multi-query associative recall.

    ```
    inputs:   k1 v1 k2 v2 | k2 x  x x k1 x      x is filler; there is no "|"
    targets:   .  .  .  . | v2 .  . . v1 .      "." is -100 and is not scored
    ```

    Keys differ within an example, and so do values. Queries stand at even distances from the end
    of the pairs; their places are drawn without replacement by a power law.
    """
    s, pairs = settings, settings.num_kv_pairs
    keys = 1 + draw_distinct(rng, (rows,), pairs, s.first_value - 1)
    values = s.first_value + draw_distinct(rng, (rows,), pairs, s.n_values)
    inputs = np.zeros((rows, s.seq_len), dtype=np.int64)
    if s.random_non_queries:
        inputs[:] = rng.integers(s.vocab_size, size=inputs.shape)
    targets = np.full_like(inputs, IGNORE)
    inputs[:, 0 : 2 * pairs : 2] = keys
    inputs[:, 1 : 2 * pairs : 2] = values
    # Racing exponential clocks: who rings first, second, ... is a draw without replacement.
    clocks = rng.standard_exponential((rows, len(weights(s)))) / weights(s)
    places = 2 * pairs + 2 * np.argsort(clocks, axis=1)[:, :pairs]  # (R, P)
    np.put_along_axis(inputs, places, keys, axis=1)
    np.put_along_axis(targets, places, values, axis=1)
    return Rows(inputs, targets)


def naive_mqar(
    rng: np.random.Generator, settings: MqarSettings, request: Request
) -> tuple[list[int], list[int]]:
    """Draw one example of multi-query associative recall, key by key."""
    s, pairs = settings, settings.num_kv_pairs
    keys = 1 + rng.permutation(s.first_value - 1)[:pairs]
    values = s.first_value + rng.permutation(s.n_values)[:pairs]
    filler = s.vocab_size if s.random_non_queries else 1
    inputs = rng.integers(filler, size=s.seq_len).tolist()
    targets = [IGNORE] * s.seq_len
    law = weights(s)
    for slot, (key, value) in enumerate(zip(keys.tolist(), values.tolist(), strict=True)):
        inputs[2 * slot : 2 * slot + 2] = [key, value]
        gap = int(rng.choice(len(law), p=law / law.sum()))
        law[gap] = 0
        inputs[2 * (pairs + gap)] = key
        targets[2 * (pairs + gap)] = value
    return inputs, targets


def weights(settings: MqarSettings) -> np.ndarray:
    """Weight of each place where a key may be asked for, the nearest first."""
    distances = np.arange(1, (settings.seq_len - 2 * settings.num_kv_pairs) // 2 + 1)
    return distances ** (settings.power_a - 1.0)


MQAR = Task(
    name="mqar",
    version=1,
    settings=MqarSettings,
    draw=draw_mqar,
    naive=naive_mqar,
    chance=lambda settings: 1 / settings.n_values,
)
