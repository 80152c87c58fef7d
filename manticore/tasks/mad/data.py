"""The door to all tasks: names and settings in, arrays out.

`compat="mad-lab"` follows athms/mad-lab, commit 0f49a45; `compat="fixed"` mends it. What differs:

| task | mad-lab | fixed |
|---|---|---|
| the three recalls, training | every next token is a target, also keys, noise and padding | \
scored as in test: values of keys that were shown |
| noisy recall | the slot spared from noise may be the last pair, which never is noise, so all \
others may be noise; where the original then fails, the row is drawn again | it is one of the \
others |
| fuzzy recall | the last key may not have been shown (an orphan, 2.3 % at the baseline) | \
orphans are drawn again |
| memorization | facts are those of seed 12345 | facts follow the data's seed |
| compression with noise | noise is a target | noise is not scored |
| selective copying | a blank falls before a random content token; none after the last | every \
placement of the content is equally likely |

The same in both, and as in the original: recall examples have seq_len - 1 input tokens, for the
last value is only a target (a single query adds its copy token: seq_len); fuzzy keys have their
full size in test and varying sizes in training.

In neither, unlike the original: random streams (one for each block of examples instead of one for
all, and none of the global one), splits that may share rows (never here), a validation split.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import numpy as np

from manticore.config.errors import did_you_mean
from manticore.tasks.blocks import draw_range
from manticore.tasks.checks import check_whole
from manticore.tasks.mad.compression import COMPRESSION
from manticore.tasks.mad.copying import COPYING
from manticore.tasks.mad.fuzzy import FUZZY_RECALL
from manticore.tasks.mad.memorization import MEMORIZATION
from manticore.tasks.mad.recall import NOISY_RECALL, RECALL
from manticore.tasks.mqar import MQAR
from manticore.tasks.state_tracking import MODULAR_ADDITION, PARITY, S5
from manticore.tasks.task import COMPATS, SPLITS, Request, Task

_MAD = (RECALL, NOISY_RECALL, FUZZY_RECALL, MEMORIZATION, COMPRESSION, COPYING)
TASKS: dict[str, Task] = {task.name: task for task in (*_MAD, MQAR, PARITY, MODULAR_ADDITION, S5)}
"""All tasks by name."""
MAD_TASKS: tuple[str, ...] = tuple(task.name for task in _MAD)
"""The six whose mean is the MAD score."""
TASK_VERSION: dict[str, int] = {name: task.version for name, task in TASKS.items()}
"""Grows with every change that makes other data of the same seed."""


def make_data(
    task: str,
    num_examples: int,
    seed: int,
    split: str = "train",
    compat: str = "fixed",
    **settings: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Make a data set.

    Args:
        task: a name in `TASKS`.
        seed: of the data set. Its splits share what must be shared (memorization's facts) and no
            row of inputs; neither do the splits of other seeds.
        split: "train", "valid" or "test".
        compat: "fixed", or "mad-lab" for the original's quirks (table above).
        settings: what differs from the task's baseline (`task_settings`).

    Returns:
        inputs and targets, int64 (num_examples, T). A target of -100 is not scored; any other is
        the token to predict at its position. The first n examples of a longer set are the set of n.
    """
    return make_range(task, 0, num_examples, seed, split, compat, **settings)


def make_range(
    task: str,
    start: int,
    stop: int,
    seed: int,
    split: str = "train",
    compat: str = "fixed",
    **settings: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Make examples `start` to `stop` - 1 of a data set, so that workers can share one.

    Put together they are what `make_data` returns, byte for byte. Blocks of 512 are drawn whole.
    """
    found, made = _find(task), task_settings(task, **settings)
    _check_choice("split", split, SPLITS)
    _check_choice("compat", compat, COMPATS)
    first, last = _whole("start", start), _whole("num_examples", stop)
    check_whole("start", first, 0)
    check_whole("num_examples", last, first + 1)
    request = Request(seed=_whole("seed", seed), split=split, compat=compat)
    return draw_range(found, made, request, first, last)


def task_settings(task: str, **settings: Any) -> Any:
    """The frozen settings of a task: its baseline with these changes.

    Raises:
        ValueError: unknown task or setting, or a value that is not allowed.
    """
    kind = _find(task).settings
    known = _fields(_find(task))
    for name in settings:
        if name not in known:
            raise ValueError(_unknown_setting(task, name, known))
    return kind(**settings)


def example_length(task: str, **settings: Any) -> int:
    """Input tokens of an example, T."""
    return int(task_settings(task, **settings).example_length)


def model_kind(task: str) -> str:
    """The model that a task is for: "lm" or "autoencoder"."""
    return _find(task).model_kind


def ceiling(
    task: str, num_train: int | None = None, compat: str = "fixed", **settings: Any
) -> float:
    """Token accuracy on test that no model can be expected to pass.

    Below 1 for memorization, where training shows only some of the facts, and for mad-lab's fuzzy
    recall, where some keys were never shown (counted in examples of a fixed seed, standard error
    about 0.001).

    Args:
        num_train: training examples; the paper's 256 for memorization unless given.
    """
    made = task_settings(task, **settings)
    _check_choice("compat", compat, COMPATS)
    if num_train is not None:
        check_whole("num_train", _whole("num_train", num_train), 1)
    return _find(task).ceiling(made, compat, num_train)


def chance(task: str, compat: str = "fixed", **settings: Any) -> float:
    """Expected token accuracy on test of guessing in the alphabet of the answers.

    Compression's last token never changes and counts as known.
    """
    made = task_settings(task, **settings)
    _check_choice("compat", compat, COMPATS)
    return _find(task).chance(made)


def _find(task: str) -> Task:
    if task in TASKS:
        return TASKS[task]
    hint = did_you_mean(str(task), TASKS)
    raise ValueError(f"Unknown task {task!r}.{hint} Known: {', '.join(TASKS)}.")


def _fields(task: Task) -> list[str]:
    return [field.name for field in dataclasses.fields(task.settings)]


def _unknown_setting(task: str, name: str, known: list[str]) -> str:
    hint = did_you_mean(name, known)
    others = [o.name for o in TASKS.values() if name in _fields(o)]
    owners = f" It is a setting of {', '.join(others)}." if others else ""
    return f"{task} has no setting {name!r}.{hint}{owners} Known: {', '.join(known)}."


def _check_choice(name: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        hint = did_you_mean(str(given), known)
        raise ValueError(f"Unknown {name} {given!r}.{hint} Known: {', '.join(known)}.")


def _whole(name: str, value: Any) -> int:
    """A plain integer, also from NumPy's."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise ValueError(f"{name}={value!r} is not a whole number. Give an integer.")
