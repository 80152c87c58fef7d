"""Examples in blocks: the same ones for any number of calls and workers, no row in two splits.

Example i of a split belongs to block i // 512, and a block has its own random stream, named by
seed, task, split and block. So any range of examples can be made anywhere, and the first n of a
longer set are the set of n.

A fixed hash of its inputs assigns every possible row to one split: half of all rows to training,
a quarter each to validation and test. Rows drawn for another split than theirs are drawn
again. Hence no row is in two splits, whatever the sizes, the seeds and the calls. The hash mixes
all tokens, so it changes the law of no single token.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from manticore.seeds import numpy_generator
from manticore.tasks.task import Request, Rows, Task

BLOCK = 512
"""Examples with one random stream."""
QUARTERS = {"train": (0, 2), "valid": (2, 3), "test": (3, 4)}
"""Which values of `quarter_of` belong to which split, from the first up to the second."""
_SPARE = 1.13
"""Rows drawn over the expected need: three standard deviations, so most blocks take one draw."""
_EMPTY_DRAWS = 16
"""Draws without one row for the split after which there is none."""


def draw_range(
    task: Task, settings: Any, request: Request, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Examples `start` to `stop` - 1 of a split.

    Returns:
        inputs and targets, int64 (stop - start, T).
    """
    inputs = np.empty((stop - start, settings.example_length), dtype=np.int64)
    targets = np.empty_like(inputs)
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        rows = draw_block(task, settings, request, block)
        first, last = max(start, block * BLOCK), min(stop, (block + 1) * BLOCK)
        here = slice(first - block * BLOCK, last - block * BLOCK)
        inputs[first - start : last - start] = rows.inputs[here]
        targets[first - start : last - start] = rows.targets[here]
    return inputs, targets


def draw_block(task: Task, settings: Any, request: Request, block: int) -> Rows:
    """The `BLOCK` examples of a block."""
    rng = numpy_generator(request.seed, "tasks", task.name, request.split, block)
    low, high = QUARTERS[request.split]
    count = int(_SPARE * BLOCK * 4 / (high - low))
    parts: list[Rows] = []
    found = empty = 0
    while found < BLOCK:
        rows = task.draw(rng, count, settings, request)
        quarter = quarter_of(rows.inputs)
        fits = (quarter >= low) & (quarter < high)
        if rows.keep is not None:
            fits &= rows.keep
        number = int(np.count_nonzero(fits))
        empty = 0 if number else empty + 1
        if empty == _EMPTY_DRAWS:
            _refuse(task, settings, request, count * _EMPTY_DRAWS)
        places = np.flatnonzero(fits)[: BLOCK - found]
        parts.append(Rows(rows.inputs[places], rows.targets[places]))
        found += number
    return Rows(
        np.concatenate([part.inputs for part in parts]),
        np.concatenate([part.targets for part in parts]),
    )


def quarter_of(inputs: np.ndarray) -> np.ndarray:
    """Hash rows of tokens to 0..3, (rows,) uint64: a random linear form, then its upper bits."""
    tokens = np.ascontiguousarray(inputs, dtype=np.int64).view(np.uint64)
    mixed = tokens @ _multipliers(inputs.shape[1])
    mixed ^= mixed >> np.uint64(32)
    return (mixed * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(62)


@lru_cache(maxsize=64)
def _multipliers(length: int) -> np.ndarray:
    """Odd 64-bit numbers, one for each position."""
    rng = numpy_generator(0, "tasks", "split", length)
    return rng.integers(2**64, size=length, dtype=np.uint64) | np.uint64(1)


def _refuse(task: Task, settings: Any, request: Request, tried: int) -> None:
    raise ValueError(
        f"No row of {task.name} at {settings} belongs to the {request.split} split: none of "
        f"{tried} was. So few different rows cannot be told apart by split. Allowed: settings "
        "with at least some hundred different rows. Raise seq_len or the vocabulary."
    )
