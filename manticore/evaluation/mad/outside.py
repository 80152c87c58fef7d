"""Modules from outside: a user's own class in a stack of mixers, and Hugging Face models.

Neither takes a generator, so torch's default one is set for as long as they are built, and put
back after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from manticore.mixers.interface import MixerSpec

Built = TypeVar("Built")


class OutsideMixer(nn.Module):
    """A user's module in the place of a mixer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(
        self, x: Tensor, padding_mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Map (batch, seq, d_model) to the same shape; the tasks have no padding to mask."""
        return self.module(x)

    @classmethod
    def draw(cls, loaded: Any, d_model: int, generator: torch.Generator) -> nn.Module:
        """Build the user's class, a `MixerSpec` or a module of `d_model`, and try it.

        Raises:
            ValueError: it cannot be built from d_model, returns another shape, or sees the future.
        """
        if issubclass(loaded, MixerSpec):
            return loaded(d_model=d_model).build(generator)
        try:
            module = drawn_from(generator, lambda: loaded(d_model))
        except TypeError as error:
            raise ValueError(
                f"{loaded.__name__}({d_model}) failed: {error}. A module is built from d_model "
                "alone; give the rest a default."
            ) from error
        _check_shape(module, d_model)
        return cls(module)


def drawn_from(generator: torch.Generator, build: Callable[[], Built]) -> Built:
    """What `build` returns when torch's default generator starts where this one says."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


@torch.no_grad()
def _check_shape(module: nn.Module, d_model: int) -> None:
    name = type(module).__name__
    x = torch.randn(2, 8, d_model, generator=torch.Generator().manual_seed(0))
    y = module(x)
    if not isinstance(y, Tensor) or y.shape != x.shape:
        given = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"{name} maps (batch, seq, d_model) = {tuple(x.shape)} to {given}. It must return a "
            "tensor of the same shape."
        )
    if not y.isfinite().all():
        raise ValueError(f"{name} gives NaN or infinity on normal inputs with fresh weights.")
    later = x.clone()
    later[:, 5:] += 1.0
    if not torch.allclose(module(later)[:, :5], y[:, :5], atol=1e-4):
        raise ValueError(
            f"{name} is not causal: changing positions 5 to 7 changed the output before them. "
            "A model that sees its answers scores nothing."
        )
