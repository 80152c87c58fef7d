"""Train trials that differ only in rate, decay and seed as one stacked model.

Every parameter of the model gets a first dimension P, one slice for each trial; the model is mapped
over it (`torch.func`), so a step of all trials is one forward and one backward pass. AdamW and
clipping act on a matrix (P, N) whose row p is trial p with all its N parameters. Rates, decays and
norms are columns (P, 1), so no trial sees another. A trial that ends is taken out of the stack.

The naive twin is `training_single`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import vmap

from manticore.evaluation.mad.metrics import Metrics, MetricSums
from manticore.evaluation.mad.stack import Stack
from manticore.evaluation.mad.stacked_adamw import StackedAdamW
from manticore.evaluation.mad.training_data import BatchOrder, in_batches, to_tensors
from manticore.evaluation.mad.training_loss import mean_loss
from manticore.evaluation.mad.training_progress import Progress
from manticore.evaluation.mad.training_single import precision_context
from manticore.evaluation.mad.training_types import (
    BuildModel,
    Outcome,
    Point,
    SplitArrays,
    TrainSettings,
)


def train_stacked(
    build_model: BuildModel,
    points: Sequence[Point],
    splits: SplitArrays,
    settings: TrainSettings,
    on_step: Callable[[int], None],
    *,
    device: torch.device,
    keep_weights: bool = False,
) -> list[Outcome]:
    """Train and measure all points together; see `training.train_points`."""
    data = [to_tensors(arrays, device) for arrays in (splits.train, splits.valid, splits.test)]
    trials = [Progress(point, settings) for point in points]
    clock = time.perf_counter()
    stack = Stack(build_model, points, device)
    best = stack.weights.clone()  # (P, N), the selected weights of every trial
    running = list(range(len(points)))
    optimizer = StackedAdamW(stack, points, settings)
    orders = {
        point.seed: BatchOrder(len(data[0][0]), settings.batch_size, point.seed) for point in points
    }
    losses: list[Tensor] = []
    for step in range(settings.steps):
        batch = _batch([orders[points[p].seed] for p in running], data[0], step)
        losses.append(_step(stack, optimizer, batch, step))
        on_step(len(running))
        if not settings.evaluates_after(step + 1):
            continue
        measured = measure(stack, data[1], settings)
        recent = torch.stack(losses, dim=1).cpu()  # (running, steps)
        losses.clear()
        for row, p in enumerate(running):
            if trials[p].measure(step + 1, recent[row], measured[row]):
                best[p] = stack.weights[row]
        clock = _share_time(clock, [trials[p] for p in running])
        going = [row for row, p in enumerate(running) if trials[p].stopped is None]
        if len(going) < len(running):
            on_step((len(running) - len(going)) * (settings.steps - step - 1))
            running = [running[row] for row in going]
            if not running:
                break
            stack.keep(going)
            optimizer.keep(going)
    return _finish(stack, trials, best, data[2], settings, keep_weights, clock)


@torch.no_grad()
def measure(stack: Stack, data: tuple[Tensor, Tensor], settings: TrainSettings) -> list[Metrics]:
    """Every trial of the stack on one split, in evaluation mode."""
    stack.model.eval()
    sums = MetricSums()
    for inputs, targets in in_batches(*data, settings.batch_size):
        with precision_context(settings, inputs.device):
            logits = stack.logits(inputs, each=False)
        sums.add(logits, targets)
    return sums.finish()


def can_stack(build_model: BuildModel, splits: SplitArrays, device: torch.device | str) -> bool:
    """Whether a model of two slices runs and gives gradients; False: it must train by itself."""
    device = torch.device(device)
    points = [Point(1e-3, 0.0, seed) for seed in (0, 1)]
    inputs, targets = (t[:2] for t in to_tensors(splits.train, device))
    try:
        stack = Stack(build_model, points, device)
        logits = stack.logits(inputs, each=False)
        stack.gradients(mean_loss(logits[0], targets) + mean_loss(logits[1], targets))
    except (RuntimeError, NotImplementedError):
        # What torch.func raises for an operation or a control flow that it cannot map.
        return False
    return True


def _step(
    stack: Stack, optimizer: StackedAdamW, batch: tuple[Tensor, Tensor, bool], step: int
) -> Tensor:
    """One step of all running trials; returns their losses (P,)."""
    inputs, targets, each = batch
    stack.model.train()
    with precision_context(optimizer.settings, inputs.device):
        logits = stack.logits(inputs, each=each)
        losses = vmap(mean_loss, in_dims=(0, 0 if each else None))(logits, targets)
    optimizer.step(stack.gradients(losses.sum()), step)
    return losses.detach()


def _batch(
    orders: list[BatchOrder], data: tuple[Tensor, Tensor], step: int
) -> tuple[Tensor, Tensor, bool]:
    """(inputs, targets, whether each trial has its own); trials of one seed share theirs."""
    inputs, targets = data
    taken = {order.seed: torch.from_numpy(order.batch_at(step)) for order in orders}
    each = len(taken) > 1
    rows = torch.stack([taken[order.seed] for order in orders]) if each else taken[orders[0].seed]
    rows = rows.to(inputs.device)
    return inputs[rows], targets[rows], each


def _finish(
    stack: Stack,
    trials: list[Progress],
    best: Tensor,
    test: tuple[Tensor, Tensor],
    settings: TrainSettings,
    keep_weights: bool,
    clock: float,
) -> list[Outcome]:
    selected = [p for p, trial in enumerate(trials) if trial.best is not None]
    tested: dict[int, Metrics] = {}
    if selected:
        stack.restore(best[selected], selected)
        tested = dict(zip(selected, measure(stack, test, settings), strict=True))
    _share_time(clock, trials)
    return [
        trial.outcome(
            "stacked",
            tested.get(p),
            stack.as_dict(best[p]) if keep_weights and p in tested else None,
        )
        for p, trial in enumerate(trials)
    ]


def _share_time(clock: float, trials: list[Progress]) -> float:
    now = time.perf_counter()
    for trial in trials:
        trial.seconds += (now - clock) / len(trials)
    return now
