"""Files and folders that are there whole or not at all.

They are written beside their place, flushed to the disk and renamed. What a killed process left
is removed when the same place is written again, or when its run is opened again. Numbers that
JSON lacks become the words "nan", "inf" and "-inf", which `float` reads.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON: the file is there whole or not at all."""
    write_text(path, to_json(value, indent=2) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file: it is there whole or not at all."""
    path = Path(path)
    partial = _beside(path)
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` when the block ends well.

    When the block raises, the folder is removed and `path` is as it was. A kill between the two
    renames that replace an existing folder is undone by the next `RunFolder.open` or
    `atomic_folder` there.
    """
    path = Path(path)
    partial, replaced = _beside(path), path.with_name(f".{path.name}.replaced")
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _restore(replaced)
        _remove_leftovers(path.parent.glob(f".{path.name}.partial-*"))
        partial.mkdir()
        try:
            with _explain_full_disk(path):
                yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    _sync(file)
            if path.exists():
                os.rename(path, replaced)
            os.rename(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            _restore(replaced)
            raise
        _sync_folder(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Raise now rather than after hours of work."""
    probe = folder / f".probe.partial-{os.getpid()}"
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("writable")
        probe.unlink()


def finish_interrupted(folder: Path) -> None:
    """Undo what a killed process left in the middle of a write."""
    for replaced in list(folder.rglob(".*.replaced")):
        _restore(replaced)
    _remove_leftovers(folder.rglob(".*.partial-*"))


def _restore(replaced: Path) -> None:
    """Put a folder back that was moved aside and not yet replaced."""
    if not replaced.is_dir():
        return
    path = replaced.with_name(replaced.name[1:].removesuffix(".replaced"))
    if path.exists():
        shutil.rmtree(replaced)
    else:
        os.rename(replaced, path)


def _remove_leftovers(partials: Iterable[Path]) -> None:
    for partial in list(partials):
        owner = partial.name.rpartition("-")[2]
        if owner.isdecimal() and int(owner) != os.getpid() and _is_alive(int(owner)):
            continue
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        _sync(folder)


_CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextlib.contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Say which file could not be written and what to do about it."""
    try:
        yield
    except OSError as error:
        if not _is_about(error, path):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = (
                "No space left while writing. Free some space or choose another folder with --out; "
                "what was finished is kept and the same command goes on from there"
            )
        elif error.errno in _CANNOT_WRITE or error.filename == str(_beside(path)):
            advice = (
                f"Cannot write there ({error.strerror}). Choose a folder that you may "
                "write to with --out"
            )
        else:
            raise
        raise OSError(error.errno, advice, str(path)) from error


def to_json(value: Any, indent: int | None = None) -> str:
    """Return strict JSON of a record."""
    return json.dumps(_jsonable(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _jsonable(value: Any) -> Any:
    """Return what JSON can hold: numbers out of arrays, words for numbers that JSON lacks."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy and torch, scalars included
        return _jsonable(value.tolist())
    raise TypeError(f"A run's record cannot hold {value!r:.80} ({type(value).__name__}).")


def _beside(path: Path) -> Path:
    """A hidden neighbour that says which process writes it."""
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


def _is_about(error: OSError, path: Path) -> bool:
    """Return whether the error is about this path, its neighbours or a folder above it."""
    if not isinstance(error.filename, str):
        return True
    about = Path(error.filename)
    return about.is_relative_to(path.parent) or path.is_relative_to(about)


@contextlib.contextmanager
def _explain_full_disk(path: Path) -> Iterator[None]:
    """Safetensors reports a full disk as an error of its own."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and "No space left" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
