"""Call projections as modules where a fused kernel would read their weights instead.

transformers' Mamba layers hand `out_proj.weight` to a fused kernel when they train, so that an
adapter on `out_proj` has neither effect nor gradient. They do so only behind `if self.training`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from manticore.adapters.stack import layers_of
from manticore.adapters.weight_reads import weight_reads


@contextmanager
def without_fused_kernels(model: nn.Module) -> Iterator[int]:
    """Inside the block the layers of `model` train by the path that calls every projection.

    Only layers with an adapter that a fused kernel would bypass are changed, in this model alone.
    Their own flag `training` is off while their forward runs; dropout and all that lies within
    them keep theirs. Scan and convolution kernels are still used.

    Yields:
        The number of layers that this concerns.
    """
    handles: list[Any] = []
    parents = _bypassed_parents(model)
    for parent in parents:
        handles.append(parent.register_forward_pre_hook(_hide_training))
        handles.append(parent.register_forward_hook(_show_training, always_call=True))
    try:
        yield len(parents)
    finally:
        for handle in handles:
            handle.remove()


def _bypassed_parents(model: nn.Module) -> list[nn.Module]:
    found: dict[int, nn.Module] = {}
    for layer in layers_of(model):
        for projection in layer.projections:
            read = weight_reads(projection.parent).get(projection.attribute)
            if projection.is_adapted and read is not None and read.only_in_training:
                found[id(projection.parent)] = projection.parent
    return list(found.values())


def _hide_training(module: nn.Module, arguments: Any) -> None:
    module.__dict__["_was_training"] = module.training
    module.training = False


def _show_training(module: nn.Module, arguments: Any, output: Any) -> None:
    module.training = module.__dict__.pop("_was_training")
