"""The settings of the pocket protocol: MAD in minutes on two CPU cores."""

from __future__ import annotations

from typing import Any

from manticore.evaluation.mad.settings import BASELINES, Setting

POCKET_VERSION = 1
CHOSEN_ON = ("Transformer", "Mamba", "GLA", "Hyena")
"""Architectures on which the settings were chosen; agreement is stated on the others."""

# Task, what differs from its baseline, training examples.
_SETTINGS: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("in-context-recall", {"seq_len": 64}, 6_400),
    ("in-context-recall", {"seq_len": 64, "vocab_size": 32}, 6_400),
    ("noisy-in-context-recall", {"seq_len": 64}, 6_400),
    ("fuzzy-in-context-recall", {"seq_len": 64}, 6_400),
    ("memorization", {}, 256),
    ("compression", {}, 6_400),
    ("selective-copying", {"seq_len": 64, "num_tokens_to_copy": 8}, 6_400),
)


def pocket_settings() -> tuple[Setting, ...]:
    """The settings, the first of each task its easier one."""
    return tuple(
        Setting(
            task=task,
            name=", ".join(f"{key}={value}" for key, value in changes.items()) or "baseline",
            options={**BASELINES[task], **changes},
            num_train=num_train,
        )
        for task, changes, num_train in _SETTINGS
    )
