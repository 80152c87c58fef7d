"""The safetensors files of a folder: which there are, and what is in them."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, from one file or from shards.

    Raises:
        ValueError: there are none, or a file is damaged.
    """
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(
            f"{folder} holds no safetensors weights ({' or '.join(WEIGHT_FILES)}). Fetch or save "
            "the checkpoint again."
        )
    tensors: dict[str, Tensor] = {}
    for path in weight_shards(found):
        check_header(path)
        tensors |= load_file(path)
    return tensors


def weight_shards(found: Path) -> list[Path]:
    """The files of a checkpoint, from its only one or from the index of all."""
    if found.suffix != ".json":
        return [found]
    try:
        files = set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values())
        if any(Path(file).name != file for file in files):
            raise KeyError("a shard lies outside the folder")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{found} is not a valid index of shards. Fetch or save the checkpoint again."
        ) from error
    missing = sorted(file for file in files if not (found.parent / file).exists())
    if missing:
        raise ValueError(
            f"{found} names {len(missing)} files that are not there (first: {missing[0]}). "
            "Fetch or save the checkpoint again."
        )
    return [found.parent / file for file in sorted(files)]


def check_header(path: Path) -> None:
    """Refuse a file that was cut off or is no safetensors."""
    # The header says how long the file must be, so this finds a cut-off download at once.
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is corrupt ({first_line(error)}; {path.stat().st_size} bytes). "
            "Fetch or save the checkpoint again."
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
