"""Shapes from one look at the data: which shape holds most of a weight change that helps?

The change is minus the gradient over some batches, or what a short full-rank training did. A shape
is worth the squared norm of the part of the change that it can hold, by the blockwise singular
value decomposition (`adapters.monarch.project`), which is the best approximation. For minus the
gradient that is the first-order decrease of the loss per unit of step; for a short run, the share
of the change that an adapter could have made.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manticore.adapters.monarch import project, to_dense
from manticore.training import ParameterGroup, TrainConfig, train
from manticore.training.batches import move_batch
from manticore.tuning.evaluate import tuning_loss
from manticore.tuning.shapes import NONE, Choice, ModuleKind, choices

PROBES = ("gradient", "short-run")
Loss = Callable[[nn.Module, Any], Tensor]


def weight_changes(
    model: nn.Module,
    kinds: Sequence[ModuleKind],
    batch_at: Callable[[int], Any],
    *,
    probe: str,
    steps: int,
    lr: float,
    seed: int = 0,
    loss_fn: Loss = tuning_loss,
) -> dict[str, Tensor]:
    """The change of every module of these kinds: name -> (out_features, in_features).

    Args:
        model: is left as it was.
        probe: `gradient` or `short-run`.
        steps: batches of the gradient, or steps of the run.
        lr: of the run, by AdamW at a constant rate.
        loss_fn: of a model and a batch.
    """
    if probe not in PROBES:
        raise ValueError(f"Unknown probe {probe!r}. Known: {', '.join(PROBES)}.")
    working = copy.deepcopy(model).requires_grad_(False)
    modules = {name: working.get_submodule(name) for kind in kinds for name in kind.modules}
    weights = {name: _weight(module) for name, module in modules.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    if probe == "gradient":
        found = _gradients(working, weights, batch_at, steps, loss_fn)
    else:
        found = _run(working, weights, batch_at, steps, lr, seed, loss_fn)
    return {name: _oriented(modules[name], change) for name, change in found.items()}


def values_of(
    kinds: Sequence[ModuleKind],
    changes: Mapping[str, Tensor],
    nblocks: Sequence[int],
    ranks: Sequence[int],
) -> dict[str, dict[Choice, float]]:
    """What each choice is worth on each kind: the squared norm that it can hold."""
    return {
        kind.ending: {
            choice: sum(held(changes[name], kind, choice) for name in kind.modules)
            for choice in choices(kind, nblocks, ranks)
        }
        for kind in kinds
    }


def held(change: Tensor, kind: ModuleKind, choice: Choice) -> float:
    """Squared norm of the best approximation of a change by one shape."""
    if choice == NONE:
        return 0.0
    shape = kind.shape(choice)
    first, second = project(change, shape)
    # The approximation is a projection, so its squared norm is what the error lacks.
    lost = (change - to_dense(first, second, shape)).double().square().sum()
    return float(change.double().square().sum() - lost)


def _gradients(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batch_at: Callable[[int], Any],
    steps: int,
    loss_fn: Loss,
) -> dict[str, Tensor]:
    model.eval()  # no dropout: a look at the data alone
    device = next(iter(weights.values())).device
    for step in range(steps):
        (loss_fn(model, move_batch(batch_at(step), device)) / steps).backward()
    zero = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    return {n: zero[n] if w.grad is None else -w.grad.detach() for n, w in weights.items()}


def _run(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batch_at: Callable[[int], Any],
    steps: int,
    lr: float,
    seed: int,
    loss_fn: Loss,
) -> dict[str, Tensor]:
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    train(
        model,
        batch_at,
        TrainConfig(steps=steps, lr=lr, weight_decay=0.0, schedule="constant", warmup_steps=0),
        parameters={"probed": ParameterGroup(parameters=weights.values())},
        loss_fn=loss_fn,
        name=f"The short run of the look, at search.probe_lr={lr:g}",
        progress=False,
        seed=seed,
    )
    return {name: weight.detach() - before[name] for name, weight in weights.items()}


def _weight(module: Any) -> nn.Parameter:
    weight = module.weight
    if not (isinstance(weight, nn.Parameter) and weight.is_floating_point()):
        raise ValueError(
            "The one-shot mode needs weights in floating point, and these are quantized. Leave "
            "model.quantization out for the search."
        )
    return weight


def _oriented(module: nn.Module, change: Tensor) -> Tensor:
    """(out_features, in_features), also for transformers' Conv1D."""
    return change if isinstance(module, nn.Linear) else change.T.contiguous()
