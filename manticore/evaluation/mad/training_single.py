"""Train trials one after another: the plain loop, and the naive twin of `stacked`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manticore.evaluation.mad.metrics import Metrics, MetricSums
from manticore.evaluation.mad.training_data import BatchOrder, call_options, in_batches, to_tensors
from manticore.evaluation.mad.training_loss import logits_of, mean_loss
from manticore.evaluation.mad.training_progress import Progress
from manticore.evaluation.mad.training_types import (
    BuildModel,
    Outcome,
    Point,
    SplitArrays,
    TrainSettings,
)
from manticore.seeds import torch_generator
from manticore.training.optimizers import decays


def train_one_by_one(
    build_model: BuildModel,
    points: Sequence[Point],
    splits: SplitArrays,
    settings: TrainSettings,
    on_step: Callable[[int], None],
    *,
    device: torch.device,
    keep_weights: bool = False,
) -> list[Outcome]:
    """Train and measure every point; see `training.train_points`."""
    data = [to_tensors(arrays, device) for arrays in (splits.train, splits.valid, splits.test)]
    outcomes = []
    for point in points:
        model = first_model(build_model, point.seed, device)
        outcomes.append(_train_one(model, point, data, settings, on_step, keep_weights))
    return outcomes


def first_model(build_model: BuildModel, seed: int, device: torch.device) -> nn.Module:
    """The model of a seed before its first step."""
    return build_model(torch_generator(seed, "mad", "weights")).to(device)


def precision_context(settings: TrainSettings, device: torch.device) -> Any:
    """Autocast to bfloat16, or nothing."""
    if settings.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@torch.no_grad()
def measure(model: nn.Module, data: tuple[Tensor, Tensor], settings: TrainSettings) -> Metrics:
    """One model on one split, in evaluation mode."""
    model.eval()
    sums, options = MetricSums(), call_options(model)
    for inputs, targets in in_batches(*data, settings.batch_size):
        with precision_context(settings, inputs.device):
            logits = logits_of(model(inputs, **options))
        sums.add(logits.unsqueeze(0), targets)
    return sums.finish()[0]


def _train_one(
    model: nn.Module,
    point: Point,
    data: list[tuple[Tensor, Tensor]],
    settings: TrainSettings,
    on_step: Callable[[int], None],
    keep_weights: bool,
) -> Outcome:
    start, progress = time.perf_counter(), Progress(point, settings)
    (inputs, targets), valid, test = data
    order = BatchOrder(len(inputs), settings.batch_size, point.seed)
    optimizer = _adamw(model, point, settings)
    losses: list[Tensor] = []
    best: dict[str, Tensor] = {}
    for step in range(settings.steps):
        rows = torch.from_numpy(order.batch_at(step)).to(inputs.device)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate(step, point.lr)
        losses.append(_step(model, optimizer, inputs[rows], targets[rows], settings))
        on_step(1)
        if settings.evaluates_after(step + 1):
            now = measure(model, valid, settings)
            if progress.measure(step + 1, torch.stack(losses).cpu(), now):
                best = {name: p.detach().clone() for name, p in model.named_parameters()}
            losses.clear()
            if progress.stopped is not None:
                on_step(settings.steps - step - 1)
                break
    tested = None
    if best:
        model.load_state_dict(best, strict=False)
        tested = measure(model, test, settings)
    progress.seconds = time.perf_counter() - start
    return progress.outcome("one-by-one", tested, best if keep_weights else None)


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    settings: TrainSettings,
) -> Tensor:
    model.train()
    optimizer.zero_grad()
    with precision_context(settings, inputs.device):
        loss = mean_loss(logits_of(model(inputs, **call_options(model))), targets)
    loss.backward()
    if settings.grad_clip:
        nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
    optimizer.step()
    return loss.detach()


def _adamw(model: nn.Module, point: Point, settings: TrainSettings) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if settings.decay == "all" or decays(p)]
    members = {id(p) for p in decayed}
    groups = [
        {"params": decayed, "weight_decay": point.weight_decay},
        {"params": [p for p in trained if id(p) not in members], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=point.lr,
        betas=settings.betas,
        eps=settings.eps,
    )
