"""A checkpoint's folder: written whole or not at all, and known to be whole by its hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from manticore.runs import atomic_folder
from manticore.training.tensors import storable

WEIGHTS = "weights.safetensors"
STATE = "state.safetensors"
RECORD = "checkpoint.json"


def write_folder(path: Path, files: Mapping[str, Mapping[str, Tensor]], record: dict) -> None:
    """Write tensors by file, and the record with the hashes of all, as one whole folder."""
    ready = {name: storable(tensors) for name, tensors in files.items()}
    size = sum(t.nbytes for tensors in ready.values() for t in tensors.values())

    def write(target: Path) -> None:
        sums = {}
        for name, tensors in ready.items():
            save_file(tensors, target / name)
            sums[name] = _file_hash(target / name)
        whole = {**record, "files": sums}
        text = json.dumps({**whole, "sha256": _record_hash(whole)})
        (target / RECORD).write_text(text, encoding="utf-8")

    _write_or_explain(path, size, write)


def newest_checkpoint(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Find the newest whole checkpoint and its record; warn about each damaged one."""
    for path in step_folders(Path(folder)):
        problem = damage(path)
        if not problem:
            return path, json.loads((path / RECORD).read_text(encoding="utf-8"))
        warnings.warn(
            f"Checkpoint {path} is damaged ({problem}); going back to the one before it.",
            stacklevel=2,
        )
    return None


def damage(path: str | Path) -> str:
    """Say what is wrong with a checkpoint folder; an empty string if it is whole."""
    path = Path(path)
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        sums, own = record["files"], record.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{RECORD} cannot be read: {type(error).__name__}"
    if own != _record_hash(record):
        return f"{RECORD} was altered"
    for name, expected in sums.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if _file_hash(file) != expected:
            return f"{name} was altered or cut short"
    return ""


def step_folders(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first, whole or damaged."""
    found = [p for p in folder.glob("step-*") if p.name[5:].isdigit() and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name[5:]), reverse=True)


def _write_or_explain(path: Path, size: int, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < size + 1_000_000:
        raise OSError(
            errno.ENOSPC,
            f"No space left for a checkpoint: {free / 1e6:.0f} MB are free, about "
            f"{size / 1e6:.0f} MB are needed. Free some space and run the same command again; "
            "it goes on from the checkpoint before this one",
            str(path),
        )
    try:
        with atomic_folder(path) as target:
            write(target)
    except SafetensorError as error:  # its message is all it has: no errno
        raise OSError(
            errno.EIO,
            f"The checkpoint could not be written ({error}). Nothing half-written was left; "
            "checkpoints before it are intact",
            str(path),
        ) from error


def _record_hash(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
