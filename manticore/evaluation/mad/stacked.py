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
from torch import Tensor, nn
from torch.func import functional_call, vmap

from manticore.evaluation.mad.metrics import Metrics, MetricSums
from manticore.evaluation.mad.stacked_adamw import StackedAdamW
from manticore.evaluation.mad.training import (
    BuildModel,
    Outcome,
    Point,
    SplitArrays,
    TrainSettings,
    logits_of,
    mean_loss,
)
from manticore.evaluation.mad.training_data import BatchOrder, call_options, in_batches, to_tensors
from manticore.evaluation.mad.training_progress import Progress
from manticore.evaluation.mad.training_single import first_model, precision_context


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


class Stack:
    """P copies of one model with weights of their own, mapped as one."""

    def __init__(
        self, build_model: BuildModel, points: Sequence[Point], device: torch.device
    ) -> None:
        by_seed = {point.seed: first_model(build_model, point.seed, device) for point in points}
        models = [by_seed[point.seed] for point in points]
        self.model, self.options = models[0], call_options(models[0])
        self.parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        rows = [_flat(model, list(self.parameters)) for model in models]
        self.weights = torch.stack(rows)  # (P, N)
        self.all_buffers = _stacked_buffers(models)
        self.buffers = self.all_buffers
        self.leaves: dict[str, Tensor] = {}
        self.unused: list[str] = []
        self._make_leaves()

    def logits(self, inputs: Tensor, *, each: bool) -> Tensor:
        """Logits (P, B, T, V).

        Args:
            inputs: (P, B, T) if `each` trial has its own, else (B, T) for all of them.
        """

        def run(weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
            output = functional_call(self.model, {**weights, **buffers}, (x,), self.options)
            return logits_of(output)

        mapped = vmap(run, in_dims=(0, 0, 0 if each else None))
        return mapped(self.leaves, self.buffers, inputs)

    def gradients(self, loss: Tensor) -> Tensor:
        """Gradients (P, N) of a sum of the trials' losses.

        Weights without a part in the loss get zero and are noted as `unused`: separate runs know
        no gradient of them, and let no decay act.
        """
        leaves = list(self.leaves.values())
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        self.unused = [name for name, g in zip(self.leaves, found, strict=True) if g is None]
        flat = [
            (torch.zeros_like(leaf) if gradient is None else gradient).flatten(1)
            for leaf, gradient in zip(leaves, found, strict=True)
        ]
        return torch.cat(flat, dim=1)

    def keep(self, rows: list[int]) -> None:
        """Go on with these trials only."""
        self.weights = self.weights[rows]
        self.buffers = {name: buffer[rows] for name, buffer in self.buffers.items()}
        self._make_leaves()

    def restore(self, weights: Tensor, trials: list[int]) -> None:
        """Take these weights (P, N) of the trials with these numbers in the first stack."""
        self.weights = weights
        self.buffers = {name: buffer[trials] for name, buffer in self.all_buffers.items()}
        self._make_leaves()

    def as_dict(self, row: Tensor) -> dict[str, Tensor]:
        """One trial's weights (N,) by name."""
        sizes = [p.numel() for p in self.parameters.values()]
        named = zip(self.parameters.items(), row.split(sizes), strict=True)
        return {name: part.view(p.shape).clone() for (name, p), part in named}

    def _make_leaves(self) -> None:
        # Views of the matrix that autograd takes for leaves: AdamW writes the matrix in place.
        sizes = [p.numel() for p in self.parameters.values()]
        parts = self.weights.detach().split(sizes, dim=1)
        self.leaves = {
            name: part.view(len(part), *parameter.shape).requires_grad_()
            for (name, parameter), part in zip(self.parameters.items(), parts, strict=True)
        }


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


def _flat(model: nn.Module, names: list[str]) -> Tensor:
    parameters = dict(model.named_parameters())
    return torch.cat([parameters[name].detach().float().flatten() for name in names])


def _stacked_buffers(models: list[nn.Module]) -> dict[str, Tensor]:
    """Buffers that differ between the trials (a seed drew them); the others stay in the model."""
    named = [dict(model.named_buffers()) for model in models]
    return {
        name: torch.stack([buffers[name] for buffers in named])
        for name, first in named[0].items()
        if any(not torch.equal(first, buffers[name]) for buffers in named[1:])
    }
