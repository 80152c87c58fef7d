"""Train a module with AdamW on ``accelerate.Accelerator``: one process or several, CPU or GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from manticore.training.batches import Batch, count_scored
from manticore.training.config import TrainConfig, TrainResult
from manticore.training.gradient_step import GradientStep, LossFunction, model_loss
from manticore.training.optimizers import (
    ParameterGroup,
    Parameters,
    build_adamw,
    implementation_of,
    name_groups,
)
from manticore.training.state import LoopResult, LoopState, NonFiniteLossError
from manticore.training.stepping import LogFunction, run_loop

if TYPE_CHECKING:
    from accelerate import Accelerator
from manticore.training.flags import modes_kept, only_trained

__all__ = [
    "Director",
    "LoopResult",
    "LoopState",
    "NonFiniteLossError",
    "TrainConfig",
    "TrainResult",
    "run_loop",
    "train",
]

EvalFunction = Callable[[nn.Module], Mapping[str, Any] | float]


class Director(Protocol):
    """Decides during a run what is trained; it may change parameter groups, never their number."""

    memory: dict[str, Any]
    """What it must remember, as JSON; saved with checkpoints and restored in place."""

    def before_step(self, step: int, optimizer: Optimizer) -> None: ...
    def after_evaluation(self, values: Mapping[str, Any]) -> None: ...


def train(
    model: nn.Module,
    batch_at: Callable[[int], Batch],
    config: TrainConfig,
    *,
    folder: str | Path | None = None,
    name: str = "train",
    loss_fn: LossFunction | None = None,
    parameters: Parameters | None = None,
    log: LogFunction | None = None,
    on_start: Callable[[int], None] | None = None,
    progress: bool = True,
    eval_fn: EvalFunction | None = None,
    eval_every: int = 0,
    seed: int = 0,
    count_items: Callable[[Batch], int] = count_scored,
    final_only: bool = False,
    director: Director | None = None,
) -> TrainResult:
    """Train ``model`` in place and return what happened.

    A run killed at any moment and started again ends with the same weights, moments and
    random streams as an uninterrupted one. A run that is finished is read back, not redone.
    ``model`` must come in as it was when the run first began.

    Args:
        batch_at: the whole batch of a step, a pure function of the step. Under
            ``accelerate launch`` each process takes its rows of it.
        folder: checkpoints and ``result.json``; None keeps nothing on disk.
        loss_fn: mean loss over the scored items of a batch; default ``model(**batch).loss``.
        parameters: what to train, or named groups with their own learning-rate scale; default
            all that require gradients. The rest of the model is frozen for the run.
        log, on_start: see `run_loop`.
        eval_fn: gets the model in eval mode without gradients; returns a loss, or a dict
            with ``loss``. Called every ``eval_every`` steps and after the last.
        seed: seeds dropout, step by step.
        count_items: scored items in a batch, which weigh the pieces of a batch that is
            computed in several.
        final_only: when done keep the weights but not the moments.
        director: decides between steps, from what the evaluations said, what is trained.
            For one process.
    """
    if parameters is None:
        parameters = [p for p in model.parameters() if p.requires_grad]
    groups = name_groups(parameters)
    _check_owned(model, groups)
    accelerator, device = _accelerator(config)
    if not getattr(model, "hf_device_map", None):
        model.to(device)
    with only_trained(model, groups), modes_kept(model):
        optimizer = build_adamw(
            groups,
            lr=config.lr,
            weight_decay=config.weight_decay,
            betas=(config.beta1, config.beta2),
            clip=config.clip,
        )
        step = GradientStep(
            model,
            batch_at,
            config,
            accelerator,
            device,
            optimizer,
            loss_fn or model_loss,
            count_items,
        )
        model.train()
        state = LoopState(modules={"model": model}, optimizers={"optimizer": optimizer})
        if director is not None:
            _check_alone(accelerator)
            state.extra = director.memory
        done = run_loop(
            step if director is None else _directed(step, director, optimizer),
            steps=config.steps,
            state=state,
            folder=folder,
            name=name,
            seed=seed,
            checkpoint_every=config.checkpoint_every,
            log_every=config.log_every,
            log=log,
            on_start=on_start,
            eval_fn=None if eval_fn is None else lambda: _evaluate(model, eval_fn, director),
            eval_every=eval_every,
            settings=_deciding_settings(config, seed),
            processes=accelerator,
            progress=progress,
            final_only=final_only,
        )
        model.zero_grad(set_to_none=True)
    return _result(done, optimizer, device, config)


def _accelerator(config: TrainConfig) -> tuple[Accelerator, torch.device]:
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import DistributedType, GradientAccumulationPlugin

    # Accelerate's settings are one per process and cannot change afterwards, so nothing that
    # a later call may want otherwise (precision, device) is told to it. Accumulation is ours;
    # the plugin keeps an environment variable from dividing the loss a second time.
    accelerator = Accelerator(
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # A branch of weight zero is skipped, so its parameters may have no gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in known:
        raise ValueError(
            f"Training under {accelerator.distributed_type} is not supported. Launch with "
            "one process, or data-parallel with accelerate launch --multi_gpu or --cpu."
        )
    device = torch.device("cpu") if config.device == "cpu" else accelerator.device
    if device != accelerator.device and accelerator.num_processes > 1:
        raise ValueError(
            f"device='cpu', but accelerate was launched on {accelerator.device}. "
            "Use accelerate launch --cpu, or device='auto'."
        )
    return accelerator, device


def _check_owned(model: nn.Module, groups: Mapping[str, ParameterGroup]) -> None:
    owned = {id(p) for p in model.parameters()}
    for name, group in groups.items():
        foreign = sum(id(p) not in owned for p in group.parameters)
        if foreign:
            raise ValueError(
                f"Parameter group {name!r} has {foreign} parameters that are not in the model. "
                "Pass parameters of the model that is trained, or a module that holds both."
            )


def _evaluate(
    model: nn.Module, eval_fn: EvalFunction, director: Director | None
) -> Mapping[str, Any]:
    with modes_kept(model), torch.no_grad():
        model.eval()
        found = eval_fn(model)
    values = found if isinstance(found, Mapping) else {"loss": float(found)}
    if director is not None:
        director.after_evaluation(values)
    return values


def _directed(
    step_fn: GradientStep, director: Director, optimizer: Optimizer
) -> Callable[[int], dict[str, Any]]:
    def step(index: int) -> dict[str, Any]:
        director.before_step(index, optimizer)
        return step_fn(index)

    return step


def _check_alone(accelerator: Accelerator) -> None:
    if accelerator.num_processes > 1:
        raise ValueError(
            "Freezing and unfreezing during a run is for one process, because data-parallel "
            "training fixes at its start what is trained. Launch with one process."
        )


def _deciding_settings(config: TrainConfig, seed: int) -> dict[str, Any]:
    """Return the settings that change the numbers; the others may differ on resuming."""
    free = {"checkpoint_every", "log_every", "device", "steps"}
    return {key: value for key, value in asdict(config).items() if key not in free} | {"seed": seed}


def _result(
    done: LoopResult, optimizer: Optimizer, device: torch.device, config: TrainConfig
) -> TrainResult:
    # result.json spells a loss that is not finite as a word, which float reads.
    scored = [e for e in done.evaluations if math.isfinite(float(e.get("loss", math.nan)))]
    best = min(scored, key=lambda e: e["loss"], default=None)
    return TrainResult(
        steps=done.steps,
        tokens=done.tokens,
        seconds=done.seconds,
        losses=done.losses,
        final_loss=done.losses[-1],
        evaluations=done.evaluations,
        best_loss=best["loss"] if best else None,
        best_step=best["step"] if best else None,
        parameters=sum(p.numel() for group in optimizer.param_groups for p in group["params"]),
        optimizer=implementation_of(optimizer),
        device=str(device),
        precision=config.precision,
    )
