"""What a training sets on a model's parts and puts back: gradients wanted, train or eval mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from manticore.training.optimizers import ParameterGroup


@contextmanager
def only_trained(model: nn.Module, groups: Mapping[str, ParameterGroup]) -> Iterator[None]:
    """Freeze what is not trained, so that it costs no gradient and no place in checkpoints."""
    trained = {id(p) for group in groups.values() for p in group.parameters}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in trained]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put every submodule's train or eval mode back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
