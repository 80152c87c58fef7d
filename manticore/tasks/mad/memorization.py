"""Memorization: learn facts that are the same in every example.

Poli et al., 2024 (arXiv:2403.17844), section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from manticore.seeds import numpy_generator
from manticore.tasks.checks import check_even, check_noise, check_vocabulary, check_whole
from manticore.tasks.drawing import draw_noise_slots
from manticore.tasks.task import IGNORE, Request, Rows, Task

NUM_TRAIN = 256
"""Training examples in the paper."""
MAD_LAB_MAP_SEED = 12345


@dataclass(frozen=True, kw_only=True)
class MemorizationSettings:
    """Memorization."""

    vocab_size: int = 256
    """Keys, values, noise, and last the token at which the value is asked for."""
    seq_len: int = 32
    """Tokens of an example, two for each fact."""
    noise_vocab_size: int = 0
    """Tokens that are neither keys nor values."""
    frac_noise: float = 0.0
    """Probability that two noise tokens stand where a fact would."""

    @property
    def n_plain(self) -> int:
        """Keys and values together."""
        return self.vocab_size - 1 - self.noise_vocab_size

    @property
    def n_keys(self) -> int:
        """Facts to learn; keys are 0 to n_keys - 1."""
        return self.n_plain // 2

    @property
    def n_values(self) -> int:
        """Values are n_keys to n_plain - 1; each belongs to one key at most."""
        return self.n_plain - self.n_keys

    @property
    def example_length(self) -> int:
        """Input tokens."""
        return self.seq_len

    def __post_init__(self) -> None:
        check_noise(self.frac_noise, self.noise_vocab_size)
        what = "two keys and two values"
        check_vocabulary(self.vocab_size, 1, self.noise_vocab_size, 4, what)
        check_whole("seq_len", self.seq_len, 2, "one fact")
        check_even("seq_len", self.seq_len, "a fact takes two tokens")


def draw_memorization(
    rng: np.random.Generator, rows: int, settings: MemorizationSettings, request: Request
) -> Rows:
    """Draw rows of memorization.

    ```
    inputs:   k3 ? k1 ? n n k3 ?     keys, "?" asks for the value, n is noise
    targets:  . v3 . v1 . . . v3     "." is -100 and is not scored
    ```

    The facts k -> v are the same in all examples of a seed, in all splits.
    """
    s, slots = settings, settings.seq_len // 2
    keys = rng.integers(s.n_keys, size=(rows, slots))
    inputs = np.full((rows, s.seq_len), s.vocab_size - 1)
    targets = np.full((rows, s.seq_len), IGNORE)
    inputs[:, ::2] = keys
    targets[:, 1::2] = facts(s, request)[keys]
    if s.frac_noise:
        noise = np.repeat(draw_noise_slots(rng, rows, slots, s.frac_noise, slots), 2, axis=1)
        inputs[noise] = rng.integers(
            s.n_plain, s.n_plain + s.noise_vocab_size, size=np.count_nonzero(noise)
        )
        targets[noise] = IGNORE
    return Rows(inputs, targets)


def naive_memorization(
    rng: np.random.Generator, settings: MemorizationSettings, request: Request
) -> tuple[list[int], list[int]]:
    """Draw one example of memorization, fact by fact."""
    s, slots = settings, settings.seq_len // 2
    value_of = facts(s, request).tolist()
    protected = rng.integers(slots)
    inputs: list[int] = []
    targets: list[int] = []
    for slot in range(slots):
        if slot != protected and rng.random() < s.frac_noise:
            inputs += rng.integers(s.n_plain, s.n_plain + s.noise_vocab_size, size=2).tolist()
            targets += [IGNORE, IGNORE]
        else:
            key = int(rng.integers(s.n_keys))
            inputs += [key, s.vocab_size - 1]
            targets += [IGNORE, value_of[key]]
    return inputs, targets


def facts(settings: MemorizationSettings, request: Request) -> np.ndarray:
    """The value of each key, (n_keys,) int64: mad-lab's map, or one of the data's own seed."""
    seed = None if request.follows_mad_lab else request.seed
    return _facts(settings.n_keys, settings.n_values, seed)


@lru_cache(maxsize=16)
def _facts(n_keys: int, n_values: int, seed: int | None) -> np.ndarray:
    if seed is None:
        rng = np.random.default_rng(MAD_LAB_MAP_SEED)
    else:
        rng = numpy_generator(seed, "tasks", "memorization", "facts")
    keys = list(range(n_keys))
    values = list(range(n_keys, n_keys + n_values))
    # Lists, keys first: the order in which mad-lab takes numbers from this generator.
    rng.shuffle(keys)
    rng.shuffle(values)
    table = np.empty(n_keys, dtype=np.int64)
    table[keys] = values[:n_keys]
    table.flags.writeable = False
    return table


def expected_coverage(settings: MemorizationSettings, num_train: int = NUM_TRAIN) -> float:
    """Expected share of the facts that training shows: 1 - (1 - 1/K)^draws for K keys.

    A model cannot know the others, so this is the ceiling on test; a guess among the values that
    were never seen adds less than 1/K. Noise takes its share of the draws, but for one slot of
    each example.
    """
    s, slots = settings, settings.seq_len // 2
    draws = num_train * (slots - s.frac_noise * (slots - 1))
    return float(-np.expm1(draws * np.log1p(-1 / s.n_keys)))


def _ceiling(settings: MemorizationSettings, compat: str, num_train: int | None) -> float:
    return expected_coverage(settings, NUM_TRAIN if num_train is None else num_train)


MEMORIZATION = Task(
    name="memorization",
    version=1,
    settings=MemorizationSettings,
    draw=draw_memorization,
    naive=naive_memorization,
    chance=lambda settings: 1 / settings.n_values,
    ceiling=_ceiling,
)
