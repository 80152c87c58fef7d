"""The stack itself: one model whose weights have a first dimension, a slice for each trial.

Legend: P trials, N parameters of one, B batch, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from manticore.evaluation.mad.training_data import call_options
from manticore.evaluation.mad.training_loss import logits_of
from manticore.evaluation.mad.training_single import first_model
from manticore.evaluation.mad.training_types import BuildModel, Point


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
