"""Randomness inside a step (dropout) as a pure function of the run's seed and the step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from manticore.seeds import derive_seed


@contextmanager
def step_randomness(seed: int, name: str, step: int, rank: int = 0) -> Iterator[None]:
    """Give the code inside its own global torch stream, and put the caller's back after.

    Layers such as dropout draw from torch's global stream. Seeding it per step makes a
    resumed run draw what the uninterrupted one drew, with no state to save.
    """
    # Not initialised means that no CUDA stream exists yet that could be disturbed.
    on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    before = torch.default_generator.get_state()
    before_cuda = torch.cuda.get_rng_state() if on_cuda else None
    number = derive_seed(seed, name, "step", step, rank)
    torch.default_generator.manual_seed(number)
    if on_cuda:
        torch.cuda.manual_seed(number)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
        if before_cuda is not None:
            torch.cuda.set_rng_state(before_cuda)
