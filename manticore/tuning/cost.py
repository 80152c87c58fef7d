"""What a method costs to train: memory and time of one step, measured on one real batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from manticore.training.batches import split_batch
from manticore.tuning.evaluate import tuning_loss

ADAM_BYTES = 12
"""Per trained number beside the number itself: gradient and two moments, in float32."""


def step_cost(
    model: nn.Module, batch: dict[str, Any], pieces: int = 1, repeats: int = 3
) -> dict[str, float]:
    """Bytes and seconds of one training step; the model is left as it was.

    Args:
        pieces: that the batch is computed in; one is measured, and its time counted for all.
        repeats: measurements of the time.

    Returns:
        `saved_bytes`: what the backward pass keeps beside the weights, each storage once;
        `state_bytes`: gradients and moments of the trained weights; `memory_bytes`: their sum;
        `step_seconds`: processor time on a CPU, wall time elsewhere, the median of `repeats`.
    """
    device = next(model.parameters()).device
    batch = split_batch(batch, pieces)[0]
    batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    was_training = model.training
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    clock = _clock(device)
    try:
        with torch.random.fork_rng(devices=[]):
            saved = _saved_bytes(model, batch)
            times = []
            for _ in range(repeats):
                began = clock()
                torch.autograd.grad(tuning_loss(model, batch), parameters, allow_unused=True)
                times.append(clock() - began)
    finally:
        model.train(was_training)
    state = ADAM_BYTES * sum(p.numel() for p in parameters)
    return {
        "saved_bytes": float(saved),
        "state_bytes": float(state),
        "memory_bytes": float(saved + state),
        "step_seconds": pieces * median(times),
    }


def _saved_bytes(model: nn.Module, batch: dict[str, Any]) -> int:
    """Bytes that autograd holds between the passes: weights are not counted, views once."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    weights |= {b.untyped_storage().data_ptr() for b in model.buffers()}
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = tuning_loss(model, batch)
    del loss
    return sum(storages.values())


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type == "cpu":
        return time.process_time  # other programs on the machine do not count

    def wall() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return wall
