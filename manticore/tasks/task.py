"""What a task is: its settings, how its rows are drawn, and what can be reached on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

IGNORE = -100
"""Target of a position that is not scored."""
SPLITS = ("train", "valid", "test")
COMPATS = ("fixed", "mad-lab")


class Rows(NamedTuple):
    """Examples, one in a row."""

    inputs: np.ndarray
    """(rows, T) tokens."""
    targets: np.ndarray
    """(rows, T) tokens, or -100 where nothing is scored."""
    keep: np.ndarray | None = None
    """(rows,) False where a row broke off and has to be drawn again."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """For whom rows are drawn."""

    seed: int
    """Seed of the data set, from which a task may derive what all its examples share."""
    split: str
    """Of `SPLITS`."""
    compat: str
    """Of `COMPATS`."""

    @property
    def follows_mad_lab(self) -> bool:
        """Whether athms/mad-lab's quirks are wanted."""
        return self.compat == "mad-lab"

    @property
    def scores_all(self) -> bool:
        """Whether a recall task scores every next token: mad-lab does, in training."""
        return self.follows_mad_lab and self.split == "train"


def _reachable(settings: Any, compat: str, num_train: int | None) -> float:
    return 1.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row in the table of tasks."""

    name: str
    """As in `make_data`."""
    version: int
    """Grows with every change that makes other data of the same seed."""
    settings: type
    """Frozen dataclass; its defaults are the baseline."""
    draw: Callable[[np.random.Generator, int, Any, Request], Rows]
    """Draw this many rows at once."""
    naive: Callable[[np.random.Generator, Any, Request], tuple[list[int], list[int]] | None]
    """The same law as a plain loop, one example at a time; None if it broke off."""
    chance: Callable[[Any], float]
    """Token accuracy of guessing in the alphabet of the answers."""
    ceiling: Callable[[Any, str, int | None], float] = _reachable
    """Token accuracy that nothing can pass on test: (settings, compat, training examples)."""
    model_kind: str = "lm"
    """"lm": one prediction at each position from those before; "autoencoder": from the last."""
