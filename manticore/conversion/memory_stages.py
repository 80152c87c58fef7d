"""The stages of a transfer recipe whose memory `manticore plan` tells, built without weights.

A process holds the teacher twice while it works on a student, as it was loaded and in converted
blocks, whether a stage runs it (alignment, distillation) or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from manticore.config.transfer_recipe import StudentConfig, TransferRecipe
from manticore.conversion.align import align_loss, mixer_parameters, train_only
from manticore.conversion.calibration import calibrate
from manticore.conversion.plan import TransferPlan
from manticore.conversion.planned_rows import plan_rows
from manticore.conversion.planning import make_plan
from manticore.conversion.reading import read_source
from manticore.conversion.student import is_calibrated, student_loss
from manticore.conversion.teacher import teacher_tokenizer
from manticore.conversion.trained_parts import adapted
from manticore.conversion.transfer import converted_config, empty_target
from manticore.evaluation.memory_plan import (
    Memory,
    Stage,
    evaluation_work,
    forward_memory,
    generation_memory,
    text_batch,
    training_memory,
)
from manticore.evaluation.memory_shadow import Shadow, bytes_of
from manticore.evaluation.recall import RecallProbe, next_token_outcomes
from manticore.models.loading import load_config
from manticore.models.recomputing import recompute_activations
from manticore.text.prepared import resolve_path

TEACHER = StudentConfig(id="teacher", label="teacher", mixer="attention", copy="all")


def transfer_stages(recipe: TransferRecipe, base: Path) -> list[Stage]:
    """All stages of all rows; rows that take the same memory share a line."""
    plan = _TransferPlan(recipe, base)
    groups: dict[str, tuple[Callable[[StudentConfig], Memory], list[StudentConfig], str]] = {}
    for row in recipe.rows:
        for what, measure, key in plan.stages_of(row):
            groups.setdefault(f"{what} {key}", (measure, [], what))[1].append(row)
    stages = [Stage(name="evaluating teacher", measure=lambda: plan.evaluation(TEACHER))]
    for measure, rows, what in groups.values():
        alike = f" and {len(rows) - 1} alike" if len(rows) > 1 else ""
        stages.append(
            Stage(name=f"{what} {rows[0].id}{alike}", measure=lambda m=measure, r=rows[0]: m(r))  # type: ignore[misc]
        )
    if recipe.samples.prompts:
        longest = max(recipe.rows, key=plan.student_bytes)
        stages.append(Stage(name="samples", measure=lambda: plan.samples(longest)))
    return stages


def check_rows(recipe: TransferRecipe, base: Path) -> None:
    """Raise for a row that cannot be made; no weights are read."""
    plan_rows(recipe, _TransferPlan(recipe, base).read)


@dataclasses.dataclass
class _Held:
    """What a process holds, without numbers."""

    shadow: Shadow
    source: Any
    teacher: Any
    student: Any

    def others(self) -> int:
        """Bytes of everything but the student."""
        return weights_of(self.source, self.teacher)


class _TransferPlan:
    """Measures the stages of one recipe."""

    def __init__(self, recipe: TransferRecipe, base: Path) -> None:
        self.recipe, self.base = recipe, base
        self.config = load_config(resolve_path(recipe.teacher.path, base))
        with torch.device("meta"):
            source = self._source()
        self.read = read_source(source)
        values = [tensor.value for tensor in self.read.tensors.values()]
        whole = bytes_of(source.parameters())
        self.copies = bytes_of([*source.parameters(), *values]) - whole
        """Bytes of tensors that have another form in converted blocks."""

    def plan_of(self, row: StudentConfig) -> TransferPlan:
        """What becomes of every tensor; raises a `ValueError` for what cannot be."""
        return make_plan(self.read, self._student(row), row.copy)[0]

    def stages_of(self, row: StudentConfig) -> Iterator[tuple[str, Any, str]]:
        """(What it does, what measures it, what its memory depends on) of one row's stages."""
        align, steps = self.recipe.steps_of(row)
        shape = repr((row.target, row.keep))
        if is_calibrated(self.recipe, row):
            yield "calibrating", self.calibration, shape
        if align:
            yield "aligning", self.alignment, shape
        if steps:
            verb = "distilling" if row.distil else "training"
            if row.freeze:
                yield f"{verb} what is new in", self.frozen, shape
            trained = f"{row.adapter}{row.copy}" if row.adapter else ""
            yield verb, self.training, shape + trained
            yield "validating", self.validation, shape + trained
        else:
            yield "validating", self.validation, f"{shape} aligned"
        yield "evaluating", self.evaluation, shape

    def calibration(self, row: StudentConfig) -> Memory:
        """Scaling the new mixers beside one more teacher, which `transfer` makes for it."""
        held = self._held(row)
        second, plan = held.shadow.build(lambda: self._student(TEACHER)), self.plan_of(row)
        ids = text_batch(self.recipe.calibration_rows, self.recipe.data.seq_len)["input_ids"]
        with torch.no_grad(), held.shadow.counting(held.source, held.student, second) as tally:
            calibrate(held.student, second, ids, plan)
        return Memory(
            weights=held.others() + weights_of(held.student, second),
            activations=self.copies + tally.peak,
        )

    def alignment(self, row: StudentConfig) -> Memory:
        """A batch in one piece; the teacher shows what it did."""
        held = self._held(row)
        train_only(mixer_parameters(held.student), held.student)
        return self._trained(held, align_loss(held.teacher, self.recipe.align.match), pieces=1)

    def frozen(self, row: StudentConfig) -> Memory:
        """Training before the inherited weights thaw."""
        held = self._held(row)
        inherited = set(self.plan_of(row).inherited_names())
        named = held.student.named_parameters()
        train_only([p for name, p in named if name not in inherited], held.student)
        return self._training(held, row)

    def training(self, row: StudentConfig) -> Memory:
        """Training of everything, or of an adapter and what is new."""
        return self._training(self._held(row, with_adapter=True), row)

    def validation(self, row: StudentConfig) -> Memory:
        """In the midst of training, or of aligning where that is all."""
        held = self._held(row, with_adapter=True)
        if self.recipe.steps_of(row)[1] == 0:
            train_only(mixer_parameters(held.student), held.student)
        work = evaluation_work(self.recipe.data.seq_len)
        memory = forward_memory(held.shadow, held.student, work, is_training=True)
        return plus_weights(memory, held.others())

    def evaluation(self, row: StudentConfig) -> Memory:
        """Test losses and recall probes of a finished model."""
        held = self._held(row)
        losses, probe = evaluation_work(self.recipe.data.seq_len), RecallProbe()

        def work(model: nn.Module) -> None:
            losses(model)
            copied = torch.zeros(probe.rows, 2 * probe.copied, dtype=torch.long)
            next_token_outcomes(model, copied)

        memory = forward_memory(held.shadow, held.student, work)
        others = weights_of(held.source) if row is TEACHER else held.others()
        return plus_weights(memory, others)

    def samples(self, row: StudentConfig) -> Memory:
        """One student at a time; the teacher waits."""
        held, settings = self._held(row), self.recipe.samples
        tokenizer = teacher_tokenizer(self.recipe, self.base)
        lengths = [
            len(tokenizer(prompt, add_special_tokens=False).input_ids)
            for prompt in settings.prompts
        ]
        memory = generation_memory(
            held.shadow,
            held.student,
            batch_size=1,
            prompt_tokens=max(1, *lengths),
            new_tokens=settings.max_new_tokens,
        )
        return plus_weights(memory, held.others())

    def student_bytes(self, row: StudentConfig) -> int:
        """Of the finished student."""
        return weights_of(self._student(row))

    def _training(self, held: _Held, row: StudentConfig) -> Memory:
        settings = self.recipe.train
        if settings.gradient_checkpointing:
            recompute_activations(held.student)
        loss = student_loss(self.recipe, row, held.teacher)
        return self._trained(held, loss, settings.grad_accumulation)

    def _trained(self, held: _Held, loss: Any, pieces: int) -> Memory:
        held.student.train()
        every = nn.ModuleDict({"student": held.student, "teacher": held.teacher})
        memory = training_memory(
            held.shadow,
            every,
            lambda: text_batch(self.recipe.train.batch_size, self.recipe.data.seq_len),
            lambda models, batch: loss(models["student"], batch),  # type: ignore[index]
            pieces=pieces,
            precision=self.recipe.train.precision,
        )
        return plus_weights(memory, weights_of(held.source))

    def _held(self, row: StudentConfig, with_adapter: bool = False) -> _Held:
        shadow = Shadow()
        return _Held(
            shadow,
            shadow.build(self._source).requires_grad_(False),
            shadow.build(lambda: self._student(TEACHER)).requires_grad_(False),
            shadow.build(lambda: self._student(row, with_adapter)),
        )

    def _source(self) -> Any:
        return AutoModelForCausalLM.from_config(self.config, dtype=torch.float32)

    def _student(self, row: StudentConfig, with_adapter: bool = False) -> Any:
        model = empty_target(converted_config(self.read, row.target, row.keep))
        if row.adapter is None or not with_adapter:
            return model
        return adapted(model, self.plan_of(row), row.adapter, self.recipe.seed)[0]


def weights_of(*models: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    return bytes_of([t for model in models for t in [*model.parameters(), *model.buffers()]])


def plus_weights(memory: Memory, more: int) -> Memory:
    """The same beside models that only lie there."""
    return dataclasses.replace(memory, weights=memory.weights + more)
