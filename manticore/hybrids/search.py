"""Differentiable search of a hybrid's mixture: bilevel DARTS and GAEA (see `bilevel_step`)."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from manticore.hybrids.bilevel_step import BilevelStep, SearchSettings
from manticore.hybrids.modeling_base import ManticorePreTrainedModel
from manticore.training import run_loop

METHODS = ("darts-bilevel", "gaea")
Batches = Callable[[int], Mapping[str, Any]] | Sequence[Mapping[str, Any]]


@dataclass(kw_only=True)
class SearchResult:
    """What a search found and what it cost."""

    method: str
    mixture: list[list[float]]
    """(num_blocks, K), rows sum to 1."""
    embed: list[float] | None
    """(K,), None when tied to the first block."""
    head: list[float] | None
    """(K,), None when tied to a block."""
    trajectory: list[dict[str, Any]] = field(default_factory=list)
    """One entry for each step: loss, arch_loss, mixture, head, embed."""
    ledger: dict[str, float] = field(default_factory=dict)
    """tokens (of weights and mixture), seconds, peak_memory_bytes; FLOPs are added by who knows
    the cost model."""

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values."""
        return asdict(self)


def search(
    hybrid: ManticorePreTrainedModel,
    train: Batches,
    valid: Batches,
    method: str = "gaea",
    budget: int | SearchSettings = 100,
    *,
    folder: str | Path | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    on_start: Callable[[int], None] | None = None,
    progress: bool = True,
) -> SearchResult:
    """Search the mixture of a hybrid; its weights are trained on the way.

    Args:
        hybrid: changed in place, mixture and (unless frozen) weights.
        train: batches for the weights: a function of the step, or a sequence that is cycled.
        valid: batches for the mixture, from text that the weights never see.
        method: "gaea" (exponentiated gradient) or "darts-bilevel" (Adam on the log weights).
        budget: a number of steps, or all settings.
        folder: keeps checkpoints, so that a killed search goes on where it was.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown search method {method!r}. Known: {', '.join(METHODS)}.")
    settings = SearchSettings(steps=budget) if isinstance(budget, int) else budget
    stepper = BilevelStep(hybrid, as_function(train), as_function(valid), method, settings)
    stepper.log = log
    with _trainable(stepper.mixture_parameters):
        done = run_loop(
            stepper,
            steps=settings.steps,
            state=stepper.state(),
            folder=folder,
            name="search",
            seed=settings.seed,
            checkpoint_every=settings.checkpoint_every,
            log_every=0,
            on_start=on_start,
            settings={**asdict(settings), "method": method},
            progress=progress,
        )
    hybrid.zero_grad(set_to_none=True)
    return SearchResult(
        method=method,
        **hybrid.backbone.rows.as_lists(),
        trajectory=stepper.trajectory,
        ledger={
            "tokens": float(done.tokens),
            "seconds": done.seconds,
            "peak_memory_bytes": float(peak_memory_bytes()),
        },
    )


def as_function(batches: Batches) -> Callable[[int], Mapping[str, Any]]:
    """Batches as a function of the step; a sequence is cycled."""
    if callable(batches):
        return batches
    if hasattr(batches, "batch_at"):
        return batches.batch_at
    if not len(batches):
        raise ValueError("An empty sequence of batches was given. Give at least one batch.")
    return lambda step: batches[step % len(batches)]


def peak_memory_bytes() -> int:
    """Highest memory so far: of the GPU if torch uses one, else of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes


@contextmanager
def _trainable(mixture: list[nn.Parameter]) -> Iterator[None]:
    """The mixture requires gradients inside, and is as before outside."""
    before = [parameter.requires_grad for parameter in mixture]
    for parameter in mixture:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in zip(mixture, before, strict=True):
            parameter.requires_grad_(flag)
