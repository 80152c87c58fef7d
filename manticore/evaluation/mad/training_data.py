"""The order in which a trial takes its examples, and its splits as tensors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from manticore.evaluation.mad.training_types import Arrays
from manticore.seeds import numpy_generator


class BatchOrder:
    """Which examples the steps of a seed take: epochs without replacement, one after another.

    A batch may reach over the end of an epoch, so every batch is full and of the same shape.
    """

    def __init__(self, num_examples: int, batch_size: int, seed: int) -> None:
        self.num_examples, self.batch_size, self.seed = num_examples, batch_size, seed
        self._epoch, self._order = -1, numpy.zeros(0, dtype=numpy.int64)

    def batch_at(self, step: int) -> numpy.ndarray:
        """Indices (batch_size,) of the examples of this step, counted from 0."""
        first = step * self.batch_size
        places = numpy.arange(first, first + self.batch_size)
        epochs, inside = places // self.num_examples, places % self.num_examples
        batch = numpy.empty(self.batch_size, dtype=numpy.int64)
        for epoch in range(epochs[0], epochs[-1] + 1):
            here = epochs == epoch
            batch[here] = self._permutation(epoch)[inside[here]]
        return batch

    def _permutation(self, epoch: int) -> numpy.ndarray:
        if epoch != self._epoch:
            generator = numpy_generator(self.seed, "mad", "order", epoch)
            self._order, self._epoch = generator.permutation(self.num_examples), epoch
        return self._order


def to_tensors(arrays: Arrays, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and targets (examples, positions) on the device."""
    inputs, targets = (torch.from_numpy(numpy.ascontiguousarray(a)).long() for a in arrays)
    return inputs.to(device), targets.to(device)


def in_batches(inputs: Tensor, targets: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive batches, the last one as long as what is left."""
    yield from zip(inputs.split(batch_size), targets.split(batch_size), strict=True)


def call_options(model: nn.Module) -> dict[str, Any]:
    """Arguments that keep a Hugging Face model from filling a cache that nobody reads."""
    takes_cache = "use_cache" in inspect.signature(model.forward).parameters
    return {"use_cache": False} if takes_cache else {}
