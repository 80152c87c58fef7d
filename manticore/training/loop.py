"""Train a module with AdamW on ``accelerate.Accelerator``: one process or several, CPU or GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from manticore.training.batches import Batch, count_scored, move_batch, split_batch
from manticore.training.optimizers import (
    ParameterGroup,
    Parameters,
    build_adamw,
    clip_gradients,
    implementation_of,
    name_groups,
    set_learning_rate,
)
from manticore.training.schedules import KINDS, learning_rate
from manticore.training.stepping import (
    LogFunction,
    LoopResult,
    LoopState,
    NonFiniteLossError,
    run_loop,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "LoopResult",
    "LoopState",
    "NonFiniteLossError",
    "TrainConfig",
    "TrainResult",
    "run_loop",
    "train",
]

LossFunction = Callable[[nn.Module, Batch], Tensor]
EvalFunction = Callable[[nn.Module], Mapping[str, Any] | float]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int
    """Optimizer steps; the run's length has no sensible default."""
    lr: float
    """Highest learning rate; it depends on the model."""
    weight_decay: float = 0.01
    """Decoupled decay of matrices; biases and one-dimensional parameters never decay."""
    beta1: float = 0.9
    """AdamW's memory of the gradient."""
    beta2: float = 0.95
    """AdamW's memory of the squared gradient."""
    clip: float = 1.0
    """Largest gradient norm per parameter group; 0 does not clip."""
    warmup_steps: int = 10
    """Steps of linear rise to ``lr``."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What follows the warm-up."""
    checkpoint_every: int = 50
    """Steps between checkpoints; 0 writes only the last one."""
    log_every: int = 10
    """Steps between log records; 0 logs only the last step."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """``bf16`` runs matrix products in bfloat16 (autocast); weights and moments keep theirs."""
    grad_accumulation: int = 1
    """Pieces that each batch is computed in; the gradient is that of the whole batch."""
    device: Literal["auto", "cpu"] = "auto"
    """``auto`` takes what accelerate finds; ``cpu`` stays on the CPU even beside a GPU."""

    def __post_init__(self) -> None:
        choices = {
            "schedule": KINDS,
            "precision": ("fp32", "bf16"),
            "device": ("auto", "cpu"),
        }
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                given = getattr(self, key)
                raise ValueError(f"Unknown {key} {given!r}. Known: {', '.join(allowed)}.")
        for key, least in {"steps": 1, "grad_accumulation": 1, "warmup_steps": 0}.items():
            if getattr(self, key) < least:
                raise ValueError(f"{key}={getattr(self, key)}: at least {least} is needed.")
        for key in ("lr", "weight_decay", "clip"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{key}={value}: give a finite number that is not negative.")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    steps: int
    tokens: int
    """Tokens of all batches (elements of ``input_ids``; scored items if there are none)."""
    seconds: float
    losses: list[float]
    """Training loss of every step."""
    final_loss: float
    """Training loss of the last step."""
    evaluations: list[dict[str, Any]]
    """What ``eval_fn`` returned, each with its ``step``."""
    best_loss: float | None
    """Lowest ``loss`` among the evaluations."""
    best_step: int | None
    parameters: int
    """Number of trained parameters."""
    optimizer: str
    """Kernel that AdamW ran on: fused, foreach, single or default."""
    device: str
    precision: str

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return asdict(self)


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
    """
    if parameters is None:
        parameters = [p for p in model.parameters() if p.requires_grad]
    groups = name_groups(parameters)
    _check_owned(model, groups)
    accelerator, device = _accelerator(config)
    if not getattr(model, "hf_device_map", None):
        model.to(device)
    with _only_trained(model, groups), _modes_kept(model):
        optimizer = build_adamw(
            groups,
            lr=config.lr,
            weight_decay=config.weight_decay,
            betas=(config.beta1, config.beta2),
            clip=config.clip,
        )
        step_fn = _Step(model, batch_at, config, accelerator, device, optimizer, count_items)
        step_fn.loss_fn = loss_fn or model_loss
        model.train()
        done = run_loop(
            step_fn,
            steps=config.steps,
            state=LoopState(modules={"model": model}, optimizers={"optimizer": optimizer}),
            folder=folder,
            name=name,
            seed=seed,
            checkpoint_every=config.checkpoint_every,
            log_every=config.log_every,
            log=log,
            on_start=on_start,
            eval_fn=None if eval_fn is None else lambda: _evaluate(model, eval_fn),
            eval_every=eval_every,
            settings=_deciding_settings(config, seed),
            processes=accelerator,
            progress=progress,
            final_only=final_only,
        )
        model.zero_grad(set_to_none=True)
    return _result(done, optimizer, device, config)


class _Step:
    """One optimizer step on the batch of a step."""

    loss_fn: LossFunction

    def __init__(
        self,
        model: nn.Module,
        batch_at: Callable[[int], Batch],
        config: TrainConfig,
        accelerator: Accelerator,
        device: torch.device,
        optimizer: Optimizer,
        count_items: Callable[[Batch], int],
    ) -> None:
        self.model, self.batch_at, self.config = model, batch_at, config
        self.accelerator, self.device, self.optimizer = accelerator, device, optimizer
        self.count_items = count_items
        self.is_parallel = accelerator.num_processes > 1
        # Alone, the model is used as it is: prepare would leave its forward wrapped.
        self.runner = accelerator.prepare(model) if self.is_parallel else model

    def __call__(self, step: int) -> dict[str, Any]:
        config = self.config
        lr = learning_rate(
            step,
            steps=config.steps,
            base=config.lr,
            warmup=config.warmup_steps,
            kind=config.schedule,
        )
        set_learning_rate(self.optimizer, lr)
        self.model.zero_grad(set_to_none=True)
        loss, tokens = self._backward(step, self.batch_at(step))
        norm = clip_gradients(self.optimizer, self.accelerator.clip_grad_norm_)
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizer.step()
        return {"loss": loss, "lr": lr, "grad_norm": norm, "tokens": tokens}

    def _backward(self, step: int, batch: Batch) -> tuple[float, int]:
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        pieces = split_batch(batch, world * self.config.grad_accumulation)
        items = self.count_items(batch)
        if items == 0:
            raise ValueError(
                f"The batch of step {step} has nothing to score: every label is -100. "
                "Check the data, or make the sequences longer than their prompts."
            )
        total = torch.zeros((), device=self.device)
        mine = pieces[rank::world]
        for number, piece in enumerate(mine):
            share = self.count_items(piece) / items
            if share == 0 and not self.is_parallel:
                continue  # a mean over nothing is NaN
            last = number == len(mine) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.runner):
                with self._autocast():
                    loss = self.loss_fn(self.runner, move_batch(piece, self.device))
                # Gradients are averaged over processes, shares are of the whole batch.
                self.accelerator.backward(loss * (share * world))
            total += loss.detach().float() * share
        if self.is_parallel:
            total = self.accelerator.reduce(total, reduction="sum")
        ids = batch.get("input_ids")
        return float(total), ids.numel() if isinstance(ids, Tensor) else items

    def _autocast(self) -> Any:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def model_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss that a Hugging Face model computes from its own labels."""
    loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise ValueError(
            f"{type(model).__name__} returned no loss. "
            "Put 'labels' into the batch, or pass loss_fn."
        )
    return loss


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


@contextmanager
def _only_trained(model: nn.Module, groups: Mapping[str, ParameterGroup]) -> Iterator[None]:
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
def _modes_kept(model: nn.Module) -> Iterator[None]:
    """Put every submodule's train or eval mode back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _evaluate(model: nn.Module, eval_fn: EvalFunction) -> Mapping[str, Any] | float:
    with _modes_kept(model), torch.no_grad():
        model.eval()
        return eval_fn(model)


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
