"""One student: transfer, alignment, training with or without freezing; resumable by itself.

```
transfer    copy what is shared, draw the rest, set the output scale of new mixers
align       layer by layer, fed by the teacher                      (row.align)
train       inherited weights frozen until the threshold fires      (row.freeze)
            the teacher's distribution beside the next token        (row.distil)
            an adapter instead of the inherited matrices            (row.adapter)
```

Steps of alignment come out of the row's own, so every row of a length sees as many tokens, but for
the batch on which new mixers are scaled; that is counted, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from manticore.config.transfer_recipe import StudentConfig, TransferRecipe
from manticore.conversion.accounting import Ledger
from manticore.conversion.align import align_loss, converted_layers, mixer_parameters, train_only
from manticore.conversion.distil import distillation_loss
from manticore.conversion.modeling_converted import ConvertedForCausalLM
from manticore.conversion.plan import TransferPlan
from manticore.conversion.teacher import prepared
from manticore.conversion.threshold import Unfreezing, said_when_thawed
from manticore.conversion.trained_parts import adapted, parameter_groups
from manticore.conversion.transfer import transfer
from manticore.evaluation.language import causal_loss, losses_by_kind
from manticore.models.recomputing import recompute_activations
from manticore.runs import RunFolder
from manticore.seeds import derive_seed
from manticore.training import (
    ParameterGroup,
    TrainConfig,
    TrainResult,
    train,
)
from manticore.training.batches import Batch


class Student:
    """One row of a recipe at work."""

    def __init__(
        self, recipe: TransferRecipe, row: StudentConfig, base: Path, lr: float, seed: int
    ) -> None:
        self.recipe, self.row, self.lr, self.seed = recipe, row, lr, seed
        shared = prepared(recipe, base)
        self.source, self.teacher, self.data = shared.source, shared.teacher, shared.data
        self.align_steps, self.steps = recipe.steps_of(row)

    @property
    def name(self) -> str:
        """Where it lies within the run."""
        return f"rows/{self.row.id}-lr{self.lr:g}-seed{self.seed}"

    def run(self, run: Path) -> dict[str, Any]:
        """All stages; what was finished before a kill is read back."""
        folder = RunFolder(run / self.name)
        folder.path.mkdir(parents=True, exist_ok=True)
        model, plan = self.transferred()
        ledger = Ledger.of(self.teacher.config, model.config, self.recipe.data.seq_len)
        if is_calibrated(self.recipe, self.row):
            rows = self.recipe.calibration_rows
            ledger.calibrate(rows * self.recipe.data.seq_len, len(converted_layers(model)))
        curve = [self._point(model, ledger)]
        if self.align_steps:
            curve += self._aligned(model, ledger, folder)
        start = curve[-1]["loss"]
        memory: dict[str, Any] = {}
        if self.steps:
            memory, evaluations, tokens = self._train(model, plan, folder)
            for evaluation in evaluations:
                share = evaluation["step"] / self.steps
                here = ledger.after_training(tokens * share, self._trained(plan, memory, share))
                curve.append({"loss": evaluation["loss"], **here})
        return {
            "id": self.row.id,
            "lr": self.lr,
            "seed": self.seed,
            "folder": self.name,
            "start": start,
            "validation": curve[-1]["loss"],
            "curve": curve,
            "unfrozen_at": memory.get("unfrozen_at"),
            "unfrozen_why": memory.get("why"),
            "parameters": plan.parameters,
            "share_inherited": plan.share_inherited,
            **{key: curve[-1][key] for key in ("tokens", "flops", "teacher_flops")},
        }

    def transferred(self) -> tuple[ConvertedForCausalLM, TransferPlan]:
        """The student before any training."""
        recipe, row = self.recipe, self.row
        calibration = None
        if is_calibrated(recipe, row):
            seed = derive_seed(recipe.seed, recipe.name, "calibration")
            calibration = self.data.batches("train", recipe.calibration_rows, seed).batch_at(0)
        return transfer(
            self.source,
            row.target,
            copy=row.copy,
            keep=row.keep,
            calibration=None if calibration is None else calibration["input_ids"],
            seed=derive_seed(self.seed, recipe.name, "new weights"),
        )

    def _batches(self, stage: str) -> Callable[[int], Batch]:
        seed = derive_seed(self.seed, self.recipe.name, stage, "batches")
        return self.data.batches("train", self.recipe.train.batch_size, seed).batch_at

    def _aligned(
        self, model: ConvertedForCausalLM, ledger: Ledger, folder: RunFolder
    ) -> list[dict[str, float]]:
        """The first stage: its part of the curve, its cost written into the ledger."""
        result, curve, done = self._align(model, folder), [], 0
        for evaluation in result.evaluations:
            tokens = result.tokens * (evaluation["step"] - done) / self.align_steps
            ledger.align(tokens, len(converted_layers(model)))
            curve.append({"loss": evaluation["loss"], **ledger.so_far()})
            done = evaluation["step"]
        return curve

    def _align(self, model: ConvertedForCausalLM, folder: RunFolder) -> TrainResult:
        mixers = mixer_parameters(model)
        train_only(mixers, model)  # matched blocks would give gradients that nobody uses
        result = train(
            model,
            self._batches("align"),
            self._config(self.align_steps, self.recipe.align.lr),
            parameters=mixers,
            loss_fn=align_loss(self.teacher, self.recipe.align.match),
            folder=folder.path / "align",
            name=f"{self.row.id}: align",
            eval_fn=self._validation,
            eval_every=self.recipe.validate_every,
            progress=False,
            seed=derive_seed(self.seed, self.recipe.name, "align"),
            final_only=True,
        )
        model.requires_grad_(True)
        return result

    def _train(
        self, model: ConvertedForCausalLM, plan: TransferPlan, folder: RunFolder
    ) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
        """The last stage: what the threshold remembers, evaluations and tokens."""
        rule = self.recipe.freeze if self.row.freeze else None
        groups, director = parameter_groups(model, plan, rule, self.steps)
        trained: nn.Module = model
        if self.row.adapter is not None:
            trained, groups = self.adapted(model, plan)
        if self.recipe.train.gradient_checkpointing:
            recompute_activations(trained)
        with said_when_thawed(director):
            result = self._trained_stage(trained, groups, director, folder)
        model.requires_grad_(True)
        return director.memory if director else {}, result.evaluations, result.tokens

    def _trained_stage(
        self, trained: nn.Module, groups: Any, director: Unfreezing | None, folder: RunFolder
    ) -> TrainResult:
        return train(
            trained,
            self._batches("train"),
            self._config(self.steps, self.lr, self.recipe.train.grad_accumulation),
            parameters=groups,
            loss_fn=student_loss(self.recipe, self.row, self.teacher),
            folder=folder.path / "train",
            name=f"{self.row.id}: train",
            log=lambda line: folder.log({**line, "stage": "train", "row": self.row.id}),
            on_start=lambda done: folder.truncate_metrics("train", done),
            eval_fn=self._validation,
            eval_every=self.recipe.validate_every,
            progress=False,
            seed=derive_seed(self.seed, self.recipe.name, "train"),
            final_only=True,
            director=director,
        )

    def _config(self, steps: int, lr: float, pieces: int = 1) -> TrainConfig:
        section = self.recipe.train
        names = "weight_decay beta2 clip warmup_steps schedule checkpoint_every precision"
        shared = {name: getattr(section, name) for name in names.split()}
        return TrainConfig(**shared, steps=steps, lr=lr, grad_accumulation=pieces)

    def adapted(
        self, model: ConvertedForCausalLM, plan: TransferPlan
    ) -> tuple[nn.Module, dict[str, ParameterGroup]]:
        """The model under the row's adapter, whose first weights the seed fixes."""
        assert self.row.adapter is not None
        seed = derive_seed(self.seed, self.recipe.name, "adapter")
        return adapted(model, plan, self.row.adapter, seed)

    def _point(self, model: nn.Module, ledger: Ledger) -> dict[str, float]:
        return {"loss": self._validation(model), **ledger.so_far()}

    def _validation(self, model: nn.Module) -> float:
        loss: float = losses_by_kind(model, self.data.packs["validation"])["loss"]["mean"]
        return loss

    def _trained(self, plan: TransferPlan, memory: Mapping[str, Any], share: float) -> Any:
        """How the tokens until here were trained, for the ledger."""
        frozen = 1.0 if self.row.adapter else 0.0
        if self.row.freeze:
            until = memory["unfrozen_at"]
            frozen = 1.0 if until is None else min(1.0, until / self.steps / share)
        return {"frozen": frozen, "new": 1 - plan.share_inherited, "distil": self.row.distil}


def is_calibrated(recipe: TransferRecipe, row: StudentConfig) -> bool:
    """Whether the row's new mixers are scaled on a batch."""
    return row.calibrate and row.copy != "scratch" and recipe.calibration_rows > 0


def student_loss(recipe: TransferRecipe, row: StudentConfig, teacher: nn.Module) -> Any:
    """What the row is trained on."""
    return distillation_loss(teacher, recipe.distil) if row.distil else causal_loss
