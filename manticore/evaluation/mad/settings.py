"""The task settings of MAD: six baselines, and the changes that make each task harder.

Poli et al., 2024 (arXiv:2403.17844), measure a task at its baseline and with one thing changed at
a time: 66 settings in all. The names of the options are those of `manticore.tasks.mad.make_data`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RECALL_TASKS = ("in-context-recall", "noisy-in-context-recall")
"""The two that part of the literature counts as one."""

BASELINES: dict[str, dict[str, Any]] = {
    "in-context-recall": {"vocab_size": 16, "seq_len": 128, "multi_query": True},
    "noisy-in-context-recall": {
        "vocab_size": 32,
        "seq_len": 128,
        "multi_query": True,
        "noise_vocab_size": 16,
        "frac_noise": 0.2,
    },
    "fuzzy-in-context-recall": {
        "vocab_size": 16,
        "seq_len": 128,
        "multi_query": True,
        "k_motif_size": 3,
        "v_motif_size": 3,
    },
    "memorization": {"vocab_size": 256, "seq_len": 32},
    "compression": {"vocab_size": 16, "seq_len": 32},
    "selective-copying": {"vocab_size": 16, "seq_len": 256, "num_tokens_to_copy": 16},
}
SHORT = {
    "in-context-recall": "CR",
    "noisy-in-context-recall": "NR",
    "fuzzy-in-context-recall": "FR",
    "memorization": "M",
    "compression": "C",
    "selective-copying": "SC",
}
"""The shorthands of mad-lab."""

_NUM_TRAIN = {task: 256 if task == "memorization" else 12_800 for task in BASELINES}
_FEWER = (6_400, 3_200, 1_600, 800)
_CHANGES: dict[str, dict[str, Sequence[Any]]] = {
    "in-context-recall": {
        "vocab_size": (32, 64, 128),
        "seq_len": (256, 512, 1024),
        "num_train": _FEWER,
    },
    "noisy-in-context-recall": {
        "vocab_size": (48, 80, 144),
        "seq_len": (256, 512, 1024),
        "num_train": _FEWER,
        "frac_noise": (0.4, 0.6, 0.8),
    },
    "fuzzy-in-context-recall": {
        "vocab_size": (32, 64, 128),
        "seq_len": (256, 512, 1024),
        "num_train": _FEWER,
    },
    "memorization": {"vocab_size": (512, 1024, 2048, 4096, 8192)},
    "compression": {
        "vocab_size": (32, 64, 128),
        "seq_len": (64, 128, 256),
        "num_train": _FEWER,
    },
    "selective-copying": {
        "vocab_size": (32, 64, 128),
        "seq_len": (512, 1024),
        "num_train": _FEWER,
        "num_tokens_to_copy": (32, 64, 96),
    },
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One task at one difficulty."""

    task: str
    """Name in `manticore.tasks.mad`."""
    name: str
    """What differs from the task's baseline, such as "vocab_size=32"."""
    options: Mapping[str, Any] = field(hash=False)
    """Options of `make_data`."""
    num_train: int
    """Examples to train on."""
    steps: int | None = None
    """Optimizer steps, if not the protocol's."""

    @property
    def label(self) -> str:
        """Short and unique within a protocol, such as "CR vocab_size=32"."""
        return f"{SHORT[self.task]} {self.name}"


def baseline_settings() -> tuple[Setting, ...]:
    """The six baselines."""
    return tuple(_setting(task, "baseline", {}) for task in BASELINES)


def full_settings() -> tuple[Setting, ...]:
    """The 66 settings of the paper: each baseline, then one change at a time."""
    settings = []
    for baseline in baseline_settings():
        settings.append(baseline)
        for option, values in _CHANGES[baseline.task].items():
            settings += [
                _setting(baseline.task, f"{option}={value}", {option: value}) for value in values
            ]
    return tuple(settings)


def changed_settings(
    settings: Iterable[Setting], changes: Mapping[str, Any]
) -> tuple[Setting, ...]:
    """Settings with other options, each in all settings that have it.

    Raises:
        ValueError: an option that no setting has.
    """
    settings = tuple(settings)
    known = dict.fromkeys(option for setting in settings for option in setting.options)
    for option in changes:
        if option not in known:
            raise ValueError(f"No task here has an option {option!r}. Known: {', '.join(known)}.")
    changed = [
        dataclasses.replace(
            setting,
            options={k: changes.get(k, value) for k, value in setting.options.items()},
        )
        for setting in settings
    ]
    # Settings that differed in the changed option only have become one.
    alike = {(s.task, tuple(s.options.items()), s.num_train, s.steps): s for s in changed}
    return tuple(alike.values())


def _setting(task: str, name: str, changes: dict[str, Any]) -> Setting:
    options = {"num_train": _NUM_TRAIN[task], **BASELINES[task], **changes}
    num_train = options.pop("num_train")
    return Setting(task=task, name=name, options=options, num_train=num_train)
