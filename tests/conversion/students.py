"""A recipe of seconds: a teacher of 16 channels, sums as its text, rows given by the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manticore.config.load import from_plain
from manticore.config.transfer_recipe import TransferRecipe
from manticore.conversion.student import Student
from tests.tuning.tiny_recipes import save_model, sums, write_rows

STEPS = 10


def teacher_folder(folder: Path) -> Path:
    """A folder with a teacher and a text."""
    save_model(folder / "teacher")
    write_rows(folder / "sums.jsonl", sums(100))
    return folder


def plain_recipe(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A recipe beside the teacher, as plain values."""
    text = {"kind": "sums", "path": "./sums.jsonl", "field": "{sum}{result}"}
    splits = {"train": 0.6, "architecture": 0.0, "validation": 0.2, "test": 0.2}
    train = {"steps": STEPS, "batch_size": 4, "warmup_steps": 1, "checkpoint_every": 2}
    return {
        "kind": "transfer",
        "name": "tiny",
        "teacher": {"path": "./teacher"},
        "data": {"sources": [text], "seq_len": 16, "splits": splits},
        "train": {**train, "weight_decay": 0.1},
        "validate_every": 1,
        "calibration_rows": 2,
        "rows": [{"label": row["id"], "mixer": "retention", **row} for row in rows],
        **changes,
    }


def student(folder: Path, row: dict[str, Any], lr: float = 3e-3, **changes: Any) -> Student:
    """One row of such a recipe, at work."""
    plain = plain_recipe([{"id": "row", **row}], **changes)
    recipe = from_plain(TransferRecipe, plain, source="the test")
    return Student(recipe, recipe.rows[0], folder, lr, seed=0)
