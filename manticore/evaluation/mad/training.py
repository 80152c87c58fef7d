"""Train trials that differ only in rate, decay and seed, and measure each on its best weights.

A trial takes batches in an order that its seed fixes, is measured on the validation split as it
goes, stops when that no longer helps, and is measured once on the test split with the weights of
its best measurement. There are two engines with equal results: one trial after another
(`training_single`, the naive twin) and all trials as one stacked model (`stacked`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from manticore.evaluation.mad.stacked import can_stack, train_stacked
from manticore.evaluation.mad.training_single import train_one_by_one
from manticore.evaluation.mad.training_types import (
    BuildModel,
    Outcome,
    Point,
    SplitArrays,
    TrainSettings,
)

ENGINES = ("auto", "one-by-one", "stacked")


def train_points(
    build_model: BuildModel,
    points: Sequence[Point],
    splits: SplitArrays,
    settings: TrainSettings,
    on_step: Callable[[int], None] | None = None,
    *,
    engine: str = "auto",
    device: torch.device | str = "cpu",
    keep_weights: bool = False,
) -> list[Outcome]:
    """Train every point, and measure it.

    Args:
        build_model: makes the model; its weights come from the generator it is given. The model
            maps (batch, seq) tokens to logits (batch, seq, vocab), or to an output with `.logits`.
        points: the trials; equal seeds mean equal first weights and equal batches.
        on_step: called with how many steps of all trials were done (or became unnecessary).
        engine: "one-by-one"; "stacked"; or "auto": stacked on a GPU where the model can be.
        keep_weights: return the selected weights, too.

    Returns:
        One outcome for each point, in order.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r} is not known. Known: {', '.join(ENGINES)}.")
    if engine == "auto":
        gains = len(points) > 1 and torch.device(device).type != "cpu"
        stackable = gains and can_stack(build_model, splits, device)
        engine = "stacked" if stackable else "one-by-one"
    train = train_stacked if engine == "stacked" else train_one_by_one
    return train(
        build_model,
        points,
        splits,
        settings,
        on_step or (lambda done: None),
        device=torch.device(device),
        keep_weights=keep_weights,
    )
