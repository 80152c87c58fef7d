"""MAD: six synthetic tasks that tell architectures apart, and four that people compare with.

Poli et al., 2024, "Mechanistic Design and Scaling of Hybrid Architectures" (arXiv:2403.17844).
"""

from manticore.tasks.mad.data import (
    MAD_TASKS,
    TASK_VERSION,
    TASKS,
    ceiling,
    chance,
    example_length,
    make_data,
    make_range,
    model_kind,
    task_settings,
)

__all__ = [
    "MAD_TASKS",
    "TASKS",
    "TASK_VERSION",
    "ceiling",
    "chance",
    "example_length",
    "make_data",
    "make_range",
    "model_kind",
    "task_settings",
]
