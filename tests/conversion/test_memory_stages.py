"""The memory plan of a transfer against every byte that its stages allocate on a CPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from manticore.conversion import teacher
from manticore.conversion.memory_stages import check_rows, transfer_stages
from manticore.conversion.student import Student
from manticore.evaluation.recall import recall_probes
from tests.conversion.students import plain_recipe, student, teacher_folder
from tests.evaluation.test_memory_plan import allocated

# What is left out is scratch inside kernels; the weights that were loaded are mapped from a file,
# and so not the allocator's, which is 1 % here. The promise is 15 %.
TOLERANCE = 0.05
NEVER = {"threshold": 0.0, "latest": None}
TRAIN = {
    "steps": 3, "batch_size": 48, "warmup_steps": 1, "checkpoint_every": 0, "weight_decay": 0.1
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_folder(tmp_path_factory.mktemp("teacher"))


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def planned(stage: str, folder: Path, row: dict[str, Any], **changes: Any) -> int:
    recipe = student(folder, row, train=TRAIN, **changes).recipe
    stages = {one.name: one for one in transfer_stages(recipe, folder)}
    return stages[f"{stage} row"].measure().total


def real_work(work: Any, folder: Path, row: dict[str, Any], **changes: Any) -> int:
    """What a student's work allocates, its teacher and its text included."""
    teacher._prepared_from.cache_clear()
    return allocated(lambda: work(student(folder, row, train=TRAIN, **changes)))


@pytest.mark.parametrize(
    ("stage", "row", "changes"),
    [
        slow("training", {"mixer": "gated-deltanet", "keep": [0]}, {}),
        slow("training", {"copy": "all", "freeze": True}, {"freeze": {"latest": 0.0}}),
        ("training what is new in", {"copy": "all", "freeze": True}, {"freeze": NEVER}),
        slow("training", {"copy": "all", "adapter": {"settings": {"r": 2}}}, {}),
        ("distilling", {"distil": True}, {}),
        ("aligning", {"copy": "all", "align": 3}, {}),
        slow("aligning", {"copy": "all", "align": 3}, {"align": {"match": "blocks"}}),
    ],
)
def test_a_students_run_takes_what_its_largest_stage_is_planned_to(
    folder, tmp_path, stage, row, changes
):
    plan = planned(stage, folder, row, **changes)
    # One row is validated here, so that the stage itself is what takes most.
    few = {**plain_recipe([])["data"], "eval_rows": 1}
    real = real_work(lambda one: one.run(tmp_path), folder, row, data=few, **changes)
    assert plan == pytest.approx(real, rel=TOLERANCE)


@pytest.mark.parametrize("mixer", ["retention", pytest.param("mamba", marks=pytest.mark.slow)])
def test_calibration_takes_what_it_is_planned_to(folder, mixer):
    row, changes = {"mixer": mixer}, {"calibration_rows": 200}
    real = real_work(Student.transferred, folder, row, **changes)
    plan = planned("calibrating", folder, row, **changes)
    assert plan == pytest.approx(real, rel=TOLERANCE)


def test_evaluation_takes_what_it_is_planned_to(folder):
    row = {"calibrate": False}

    def work(one: Student) -> None:
        model, _ = one.transferred()
        recall_probes(model, range(8, model.config.vocab_size))

    real = real_work(work, folder, row)
    assert planned("evaluating", folder, row) == pytest.approx(real, rel=TOLERANCE)


def test_pieces_and_layers_computed_twice_take_less_and_train_the_same(folder, tmp_path):
    row, losses, planned_bytes = {"copy": "all", "distil": True}, [], []
    for saving in ({}, {"grad_accumulation": 4, "gradient_checkpointing": True}):
        train = {**TRAIN, **saving}
        one = student(folder, row, train=train)
        losses.append(one.run(tmp_path / str(len(losses)))["validation"])
        stages = {stage.name: stage for stage in transfer_stages(one.recipe, folder)}
        planned_bytes.append(stages["distilling row"].measure().total)
    assert planned_bytes[1] < 0.5 * planned_bytes[0]
    # The order of sums is another, which float32 shows in its last digits.
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_row_that_cannot_be_made_is_told_by_its_name(folder):
    recipe = student(folder, {}).recipe
    rows = (dataclasses.replace(recipe.rows[0], id="far", keep=(7,)),)
    with pytest.raises(ValueError, match="Row far: keep names layer 7"):
        check_rows(dataclasses.replace(recipe, rows=rows), folder)
