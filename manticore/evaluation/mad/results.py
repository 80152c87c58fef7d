"""A folder of trial records: one file for each, written whole or not at all.

```
sweep.json           which protocol, in which version
trials/<key>.json    one record for each finished training
trials/<key>.torn    a record that could not be read, and was trained again
errors/<key>.txt     why a training could not be run, until it can
.steps/<key>         steps of the trainings in flight, for the bar
```
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from manticore.evaluation.mad.protocol import PROFILES, Protocol
from manticore.runs import write_json, write_text
from manticore.runs.files import check_writable, finish_interrupted

SCHEMA = 1
IDENTITY = ("schema", "profile", "protocol_version", "task_versions", "compat")

Record = dict[str, Any]


class ResultsFolder:
    """The records of a protocol. One process writes; any number may read.

    Args:
        path: the folder; nothing is touched before `open`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def open(self, protocol: Protocol) -> ResultsFolder:
        """Create the folder, or go on in it.

        Raises:
            ValueError: it holds another protocol, another version or something else, or another
                process works in it.
        """
        about = sweep_identity(protocol)
        self.refuse_others(about)
        check_writable(self.path)
        # One lock for all objects of this process; a killed process lets go at once.
        self._held = FileLock(self.path / ".lock", is_singleton=True)
        try:
            self._held.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"Another process is working in {self.path}. Wait until it is done, or choose "
                "another folder with --out."
            ) from None
        finish_interrupted(self.path)
        self._set_torn_aside()
        if not (self.path / "sweep.json").is_file():
            write_json(self.path / "sweep.json", about)
        return self

    def close(self) -> None:
        """Let other processes write."""
        self._held.release()

    def __enter__(self) -> ResultsFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def has(self, key: str) -> bool:
        """Whether a trial is finished."""
        return self._file(key).is_file()

    def read(self, key: str) -> Record:
        """The record of a finished trial."""
        return read_record(self._file(key))

    def write(self, key: str, record: Record) -> None:
        """Keep the record of a finished trial."""
        write_json(self._file(key), record)
        self._error_file(key).unlink(missing_ok=True)

    def complain(self, key: str, text: str) -> None:
        """Keep why a trial could not be run."""
        write_text(self._error_file(key), text)

    def _set_torn_aside(self) -> None:
        """Keep unreadable records (of a full disk, say) out of the way, to train them again."""
        for file in sorted((self.path / "trials").glob("*.json")):
            try:
                read_record(file)
            except ValueError as error:
                kept = file.replace(file.with_suffix(".torn"))
                warnings.warn(f"{error} It is kept as {kept.name}.", stacklevel=3)

    def refuse_others(self, about: Mapping[str, Any]) -> None:
        """Raise unless the folder is new, empty, or of the same protocol and version."""
        found = self.path / "sweep.json"
        if not found.is_file():
            names = self.path.iterdir() if self.path.is_dir() else iter(())
            strangers = sorted(p.name for p in names if not p.name.startswith("."))
            if strangers:
                raise ValueError(
                    f"{self.path} is not a folder of MAD results: it holds "
                    f"{', '.join(strangers[:3])}. Choose a new or empty folder with --out."
                )
            return
        earlier = _parse(found.read_text(encoding="utf-8"), str(found))
        differing = [
            f"{key} {earlier.get(key)!r}, now {about[key]!r}"
            for key in IDENTITY
            if earlier.get(key) != about[key]
        ]
        if differing:
            raise ValueError(
                f"{self.path} holds results of another version: {'; '.join(differing)}. Nothing "
                "was changed. Choose another folder with --out; a board may show both."
            )

    def _file(self, key: str) -> Path:
        return self.path / "trials" / f"{key}.json"

    def _error_file(self, key: str) -> Path:
        return self.path / "errors" / f"{key}.txt"


def sweep_identity(protocol: Protocol) -> Record:
    """What all records of a folder share."""
    return {
        "schema": SCHEMA,
        "profile": protocol.name,
        "protocol_version": protocol.version,
        "task_versions": task_versions(),
        "compat": protocol.compat,
    }


def task_versions() -> dict[str, int]:
    """The versions of the six tasks."""
    from manticore.tasks.mad import MAD_TASKS, TASK_VERSION

    return {task: TASK_VERSION[task] for task in MAD_TASKS}


def load_records(paths: Iterable[str | Path]) -> list[Record]:
    """The records of folders and of files with one record in a line, each key once.

    Raises:
        ValueError: nothing there, or records that this version does not read.
    """
    records: dict[str, Record] = {}
    for path in map(Path, paths):
        found = _read_lines(path) if path.is_file() else _read_folder(path)
        if not found:
            raise ValueError(f"{path} holds no finished trial. Run `manticore mad run` first.")
        records.update((record["key"], record) for record in found)
    return list(records.values())


def read_record(path: Path) -> Record:
    """One record, checked."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    return _check(_parse(text, str(path)), str(path))


def write_lines(path: str | Path, records: Iterable[Record]) -> None:
    """All records in one file, sorted by key so that equal records give equal bytes."""
    ordered = sorted(records, key=lambda record: str(record["key"]))
    lines = [json.dumps(record, ensure_ascii=False, sort_keys=True) for record in ordered]
    write_text(path, "\n".join(lines) + "\n")


def _read_folder(path: Path) -> list[Record]:
    if not (path / "sweep.json").is_file():
        raise ValueError(
            f"{path} is not a folder of MAD results: it has no sweep.json. Give what "
            "`manticore mad run --out` wrote, or a .jsonl file of records."
        )
    return [read_record(file) for file in sorted((path / "trials").glob("*.json"))]


def _read_lines(path: Path) -> list[Record]:
    if path.suffix == ".json":
        raise ValueError(
            f"{path} is no file of records, which has a .jsonl ending. Give the folder that "
            "`manticore mad run --out` wrote, or what `mad board --pack` made of it."
        )
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    named = [(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line]
    return [_check(_parse(line, where), where) for where, line in named]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} is not valid JSON ({error}). Remove it and run again."
        ) from error


def _check(record: Any, where: str) -> Record:
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else None
        raise ValueError(
            f"{where} has schema {found!r}; this version reads schema {SCHEMA}. Known profiles: "
            f"{', '.join(PROFILES)}. Run the sweep again with this version."
        )
    lacking = [key for key in ("key", "settings", "result") if key not in record]
    if lacking:
        raise ValueError(
            f"{where} is no record of a training: it has no {lacking[0]}. Remove it and run again."
        )
    return {**record, "result": _with_numbers(record["result"])}


def _with_numbers(value: Any) -> Any:
    """Turn the words that stand for numbers that JSON lacks (a loss of "nan") into numbers."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    return float(value) if value in ("nan", "inf", "-inf") else value
