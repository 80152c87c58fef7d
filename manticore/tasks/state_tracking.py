"""State tracking: say after every token where a chain of group elements has led.

Parity is the group of two elements, modular addition a cyclic group, S5 all permutations of five
things, which no fixed number of parallel steps is believed to follow (Merrill et al., 2024,
arXiv:2404.08819). They are not part of the MAD score.

Legend: R rows, T positions, G group elements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import Any

import numpy as np

from manticore.tasks.checks import check_whole
from manticore.tasks.task import Request, Rows, Task


@dataclass(frozen=True, kw_only=True)
class ParitySettings:
    """Parity: whether the ones so far are odd in number."""

    seq_len: int = 64
    """Tokens of an example, each 0 or 1."""

    @property
    def vocab_size(self) -> int:
        """Zero and one."""
        return 2

    @property
    def example_length(self) -> int:
        """Input tokens."""
        return self.seq_len

    def __post_init__(self) -> None:
        check_whole("seq_len", self.seq_len, 1)


@dataclass(frozen=True, kw_only=True)
class ModularAdditionSettings:
    """Modular addition: the sum so far, modulo `modulus`."""

    modulus: int = 7
    """Tokens are 0 to modulus - 1."""
    seq_len: int = 64
    """Tokens of an example."""

    @property
    def vocab_size(self) -> int:
        """One token for each remainder."""
        return self.modulus

    @property
    def example_length(self) -> int:
        """Input tokens."""
        return self.seq_len

    def __post_init__(self) -> None:
        check_whole("modulus", self.modulus, 2)
        check_whole("seq_len", self.seq_len, 1)


@dataclass(frozen=True, kw_only=True)
class S5Settings:
    """S5: the permutation that the permutations so far add up to."""

    seq_len: int = 64
    """Tokens of an example."""

    @property
    def vocab_size(self) -> int:
        """The 120 permutations of five things, in lexicographic order; 0 changes nothing."""
        return 120

    @property
    def example_length(self) -> int:
        """Input tokens."""
        return self.seq_len

    def __post_init__(self) -> None:
        check_whole("seq_len", self.seq_len, 1)


def draw_sums(rng: np.random.Generator, rows: int, settings: Any, request: Request) -> Rows:
    """Draw rows of parity (modulus 2) or modular addition.

    ```
    inputs:   1 0 1 1     uniform
    targets:  1 1 0 1     the sum so far, modulo 2; every position is scored
    ```
    """
    inputs = rng.integers(settings.vocab_size, size=(rows, settings.seq_len))
    return Rows(inputs, np.cumsum(inputs, axis=1) % settings.vocab_size)


def naive_sums(
    rng: np.random.Generator, settings: Any, request: Request
) -> tuple[list[int], list[int]]:
    """Draw one example of parity or modular addition, token by token."""
    inputs = rng.integers(settings.vocab_size, size=settings.seq_len).tolist()
    targets, state = [], 0
    for token in inputs:
        state = (state + token) % settings.vocab_size
        targets.append(state)
    return inputs, targets


def draw_s5(rng: np.random.Generator, rows: int, settings: S5Settings, request: Request) -> Rows:
    """Draw rows of the word problem of S5.

    ```
    inputs:   p1 p2    p3          uniform permutations
    targets:  p1 p2∘p1 p3∘p2∘p1    p1 acts first; every position is scored
    ```
    """
    inputs = rng.integers(settings.vocab_size, size=(rows, settings.seq_len))
    table, targets = composition_table(), np.empty_like(inputs)
    state = np.zeros(rows, dtype=np.int64)
    for position in range(settings.seq_len):
        state = table[inputs[:, position], state]
        targets[:, position] = state
    return Rows(inputs, targets)


def naive_s5(
    rng: np.random.Generator, settings: S5Settings, request: Request
) -> tuple[list[int], list[int]]:
    """Draw one example of S5, moving five things by hand."""
    elements = list(permutations(range(5)))
    inputs = rng.integers(120, size=settings.seq_len).tolist()
    targets, state = [], (0, 1, 2, 3, 4)
    for token in inputs:
        state = tuple(elements[token][image] for image in state)
        targets.append(elements.index(state))
    return inputs, targets


@lru_cache(maxsize=1)
def composition_table() -> np.ndarray:
    """Number of p after q at [p, q], (120, 120) int64; p after q takes i to p[q[i]]."""
    elements = np.array(list(permutations(range(5))))  # (G, 5)
    products = elements[:, elements]  # (G, G, 5): [p, q, i] is p[q[i]]
    digits = 5 ** np.arange(5)[::-1]
    # Base 5 keeps the lexicographic order, so a search finds the number.
    table = np.searchsorted(elements @ digits, products @ digits)
    table.flags.writeable = False
    return table


def _one_in_vocabulary(settings: Any) -> float:
    return 1 / settings.vocab_size


def _task(name: str, settings: type, draw: Callable[..., Rows], naive: Callable[..., Any]) -> Task:
    return Task(
        name=name,
        version=1,
        settings=settings,
        draw=draw,
        naive=naive,
        chance=_one_in_vocabulary,
    )


PARITY = _task("parity", ParitySettings, draw_sums, naive_sums)
MODULAR_ADDITION = _task("modular-addition", ModularAdditionSettings, draw_sums, naive_sums)
S5 = _task("s5", S5Settings, draw_s5, naive_s5)
