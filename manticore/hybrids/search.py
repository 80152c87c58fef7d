"""Differentiable search of a hybrid's mixture: bilevel DARTS and GAEA.

Every step takes one batch for the weights and one, from a split of its own, for the mixture
(first-order bilevel optimisation: DARTS, arXiv 1806.09055, equation 7 with xi = 0). The mixture
has its own optimizer: no weight decay, its own clipping and learning rate, and a warm-up during
which it does not move, because the branch that learns the easy part of the loss first would
otherwise win for the wrong reason.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from manticore.evaluation.language import causal_loss
from manticore.hybrids.mixture_optimizers import ExponentiatedGradient, clip_mixture
from manticore.hybrids.modeling_base import ManticorePreTrainedModel
from manticore.training import LoopState, build_adamw, learning_rate, run_loop
from manticore.training.optimizers import clip_gradients, set_learning_rate

METHODS = ("darts-bilevel", "gaea")
Batches = Callable[[int], Mapping[str, Any]] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How a search moves weights and mixture."""

    steps: int = 100
    """Steps, each with one batch for the weights and one for the mixture."""
    lr: float = 2e-3
    """Peak learning rate of the weights (AdamW)."""
    weight_decay: float = 0.01
    """Of the weights; the mixture has none."""
    clip: float = 1.0
    """Largest gradient norm of the weights."""
    mixture_lr: float = 0.05
    """Learning rate of the mixture."""
    mixture_clip: float = 1.0
    """Largest gradient norm of the mixture."""
    warmup_steps: int = 10
    """Steps before the mixture moves; the weights' learning rate rises as long."""
    train_weights: bool = True
    """False searches the mixture of the frozen hybrid."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    seed: int = 0
    """Of dropout."""


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
    stepper = _BilevelStep(hybrid, as_function(train), as_function(valid), method, settings)
    stepper.log = log
    with _trainable_mixture(stepper.mixture_parameters):
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
        **mixture_values(hybrid),
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


def mixture_values(hybrid: ManticorePreTrainedModel) -> dict[str, Any]:
    """Mixture rows of a hybrid as lists: mixture, embed and head (None when tied)."""
    rows = hybrid.backbone.rows
    return {
        "mixture": _rounded(rows.weights),
        "embed": None if rows.embed is None else _rounded(rows.embed.float().softmax(-1)),
        "head": None if rows.head is None else _rounded(rows.head.float().softmax(-1)),
    }


def peak_memory_bytes() -> int:
    """Highest memory so far: of the GPU if torch uses one, else of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes


class _BilevelStep:
    """One step: weights on a training batch, then the mixture on a batch of its own."""

    def __init__(
        self,
        hybrid: ManticorePreTrainedModel,
        train: Callable[[int], Mapping[str, Any]],
        valid: Callable[[int], Mapping[str, Any]],
        method: str,
        settings: SearchSettings,
    ) -> None:
        self.hybrid, self.train, self.valid, self.settings = hybrid, train, valid, settings
        self.device = next(hybrid.parameters()).device
        self.mixture_parameters: list[nn.Parameter] = hybrid.mixture_parameters()
        self.optimizers: dict[str, Optimizer] = {"mixture": self._mixture_optimizer(method)}
        if settings.train_weights:
            self.optimizers["weights"] = self._weight_optimizer()
        self.extra: dict[str, Any] = {"trajectory": []}
        self.log: Callable[[dict[str, Any]], None] | None = None
        hybrid.train(settings.train_weights)

    @property
    def trajectory(self) -> list[dict[str, Any]]:
        return self.extra["trajectory"]

    def state(self) -> LoopState:
        return LoopState(
            modules={"hybrid": self.hybrid}, optimizers=self.optimizers, extra=self.extra
        )

    def __call__(self, step: int) -> dict[str, Any]:
        metrics = self._train_weights(step) if self.settings.train_weights else {}
        tokens = metrics.get("tokens", 0)
        metrics |= self._move_mixture(step)
        metrics["tokens"] += tokens
        metrics.setdefault("loss", metrics["arch_loss"])
        entry = {"step": step + 1, **metrics, **mixture_values(self.hybrid)}
        self.trajectory.append(entry)
        if self.log is not None:
            self.log(entry)
        return metrics

    def _train_weights(self, step: int) -> dict[str, Any]:
        settings, batch = self.settings, self._batch(self.train, step)
        rate = learning_rate(
            step, steps=settings.steps, base=settings.lr, warmup=settings.warmup_steps
        )
        optimizer = self.optimizers["weights"]
        set_learning_rate(optimizer, rate)
        loss = causal_loss(self.hybrid, batch)
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        loss.backward(inputs=weights)
        norm = clip_gradients(optimizer)
        if loss.isfinite() and math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.item(), "grad_norm": norm, "tokens": batch["input_ids"].numel()}

    def _move_mixture(self, step: int) -> dict[str, Any]:
        batch = self._batch(self.valid, step)
        loss = causal_loss(self.hybrid, batch)
        metrics = {"arch_loss": loss.item(), "tokens": batch["input_ids"].numel()}
        if step >= self.settings.warmup_steps and loss.isfinite():
            # Only the mixture's gradient is asked for, so no weight gradient is computed.
            loss.backward(inputs=self.mixture_parameters)
            norm = clip_mixture(self.mixture_parameters, self.settings.mixture_clip)
            if math.isfinite(norm):  # else one spike would stay in Adam's moments for ever
                self.optimizers["mixture"].step()
            self.optimizers["mixture"].zero_grad(set_to_none=True)
        return metrics

    def _batch(self, source: Callable[[int], Mapping[str, Any]], step: int) -> dict[str, Any]:
        batch = source(step)
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def _mixture_optimizer(self, method: str) -> Optimizer:
        lr = self.settings.mixture_lr
        if method == "gaea":
            return ExponentiatedGradient(self.mixture_parameters, lr=lr)
        # DARTS's choice for the architecture: a short memory, no decay.
        return torch.optim.Adam(self.mixture_parameters, lr=lr, betas=(0.5, 0.999))

    def _weight_optimizer(self) -> Optimizer:
        mixture = {id(p) for p in self.mixture_parameters}
        weights = [p for p in self.hybrid.parameters() if p.requires_grad and id(p) not in mixture]
        return build_adamw(
            weights,
            lr=self.settings.lr,
            weight_decay=self.settings.weight_decay,
            betas=(0.9, 0.95),
            clip=self.settings.clip,
        )


class _trainable_mixture:
    """The mixture requires gradients inside, and is as before outside."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.before = [p.requires_grad for p in parameters]

    def __enter__(self) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    def __exit__(self, *_: object) -> None:
        for parameter, flag in zip(self.parameters, self.before, strict=True):
            parameter.requires_grad_(flag)


def _rounded(values: Tensor) -> list:
    return torch.round(values.detach().double(), decimals=6).tolist()
