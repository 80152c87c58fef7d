"""The settings of the pocket protocol: MAD in minutes on two CPU cores.

Width and architectures are the paper's, so parameters and states are, too. Sequences are short,
alphabets small, and one learning rate is tried, so that each task takes some hundred steps of 16
examples: enough for some architectures and not for others. What it measures is therefore closer to
how fast an architecture learns a skill than to what it reaches in the paper's 20,000 steps.
"""

from __future__ import annotations

from typing import Any

from manticore.evaluation.mad.settings import BASELINES, Setting

POCKET_VERSION = 1
CHOSEN_ON = ("Transformer", "Mamba", "GLA", "Hyena")
"""Architectures on which the settings were chosen; agreement is stated on the others."""

# Task, what differs from its baseline, training examples, steps.
_SETTINGS: tuple[tuple[str, dict[str, Any], int, int], ...] = (
    ("in-context-recall", {"seq_len": 32, "vocab_size": 8}, 12_800, 1000),
    (
        "noisy-in-context-recall",
        {"seq_len": 32, "vocab_size": 12, "noise_vocab_size": 4},
        12_800,
        1000,
    ),
    (
        "fuzzy-in-context-recall",
        {"seq_len": 32, "vocab_size": 10, "k_motif_size": 2, "v_motif_size": 2},
        12_800,
        1000,
    ),
    ("memorization", {"vocab_size": 1024}, 256, 150),
    ("compression", {"seq_len": 16}, 12_800, 500),
    ("selective-copying", {"seq_len": 32, "num_tokens_to_copy": 6}, 12_800, 800),
)


def pocket_settings() -> tuple[Setting, ...]:
    """The six settings, one for each task."""
    return tuple(
        Setting(
            task=task,
            name="pocket",
            options={**BASELINES[task], **changes},
            num_train=num_train,
            steps=steps,
        )
        for task, changes, num_train, steps in _SETTINGS
    )
