"""The folder of one run, from the recipe to the result."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from manticore.runs.environment import environment
from manticore.runs.files import (
    check_writable,
    explain_os_errors,
    finish_interrupted,
    to_json,
    write_json,
    write_text,
)

_STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


class RunFolder:
    """The folder of one run, which can be left at any moment and continued later.

    Args:
        path: the folder. Nothing is touched before `open`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def open(self, resolved: dict[str, Any], overwrite: bool = False) -> RunFolder:
        """Create the folder, or continue in it, for the run that `resolved` describes.

        Args:
            resolved: the whole recipe as plain values.
            overwrite: remove what an earlier run with another recipe left.

        Raises:
            OSError: nothing can be written there.
            ValueError: the folder holds something else, or another process works in it.
        """
        self._refuse_others(resolved, overwrite)
        check_writable(self.path)
        self._lock()
        finish_interrupted(self.path)
        self._mend_metrics()
        if not (self.path / "recipe.yaml").exists():
            write_text(self.path / "recipe.yaml", _to_yaml(resolved))
        self._write_environment()
        return self

    def is_done(self, stage: str) -> bool:
        """Return whether the stage has finished."""
        return self._stage_file(stage).is_file()

    def finish(self, stage: str, record: dict[str, Any]) -> None:
        """Mark the stage as finished and keep its record."""
        write_json(self._stage_file(stage), record)

    def record(self, stage: str) -> dict[str, Any]:
        """Return the record of a finished stage."""
        if not self.is_done(stage):
            raise ValueError(f"Stage '{stage}' of {self.path} is not finished. Run it first.")
        record: dict[str, Any] = json.loads(self._stage_file(stage).read_text(encoding="utf-8"))
        return record

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        line = to_json(record) + "\n"
        with explain_os_errors(self._metrics), self._metrics.open("a", encoding="utf-8") as file:
            file.write(line)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the logged records, in order. A last line that a crash cut off is left out."""
        if not self._metrics.exists():
            return []
        lines = self._metrics.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]  # what follows the last newline is partial

    def truncate_metrics(self, stage: str, step: int, row: str | int | None = None) -> None:
        """Drop the records of a stage after `step`: they will be made again after a crash.

        Args:
            stage: value of the record's "stage".
            step: last step to keep; records without a "step" stay.
            row: drop only records with this "row"; None means all rows.
        """

        def is_kept(record: dict[str, Any]) -> bool:
            is_meant = record.get("stage") == stage and (row is None or record.get("row") == row)
            return not is_meant or record.get("step", step) <= step

        self._mend_metrics()
        records = self.metrics()
        kept = [record for record in records if is_kept(record)]
        if len(kept) < len(records):
            write_text(self._metrics, "".join(to_json(record) + "\n" for record in kept))

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json."""
        write_json(self.path / "result.json", result)

    def result(self) -> dict[str, Any] | None:
        """Return the content of result.json, None if there is none yet."""
        path = self.path / "result.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def _stage_file(self, stage: str) -> Path:
        if not _STAGE_NAME.fullmatch(stage):
            raise ValueError(f"'{stage}' cannot name a stage. Use letters, digits, '.', '_', '/'.")
        return self.path / "stages" / f"{stage}.json"

    def _refuse_others(self, resolved: dict[str, Any], overwrite: bool) -> None:
        """Raise unless the folder is new, empty, or of the same recipe."""
        made_by = self.path / "recipe.yaml"
        if not made_by.is_file():
            strangers = _strangers(self.path)
            if strangers:
                raise ValueError(
                    f"{self.path} is not a run's folder: it holds {', '.join(strangers[:3])}. "
                    "Choose a new or empty folder with --out."
                )
            return
        earlier = yaml.safe_load(made_by.read_text(encoding="utf-8"))
        differing = differing_keys(earlier, yaml.safe_load(_to_yaml(resolved)))
        if differing and overwrite:
            shutil.rmtree(self.path)
        elif differing:
            raise ValueError(
                f"{self.path} belongs to a run with another recipe. It differs in "
                f"{'; '.join(differing[:5])}{' and more' if len(differing) > 5 else ''}. "
                "Choose another folder with --out, or remove this one."
            )

    def _lock(self) -> None:
        """Keep other processes out while this object lives; a killed process lets go at once."""
        # One lock for all objects of this process, which may open the same folder again.
        self._held = FileLock(self.path / ".lock", is_singleton=True)
        try:
            self._held.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"Another process is working in {self.path}. Wait until it is done, or choose "
                "another folder with --out."
            ) from None

    def _mend_metrics(self) -> None:
        """Cut off a last line that a crash left unfinished, lest the next one be glued to it."""
        if not self._metrics.exists():
            return
        with self._metrics.open("rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)

    def _write_environment(self) -> None:
        """Keep one file for each different environment that worked on this run."""
        now = environment()
        files = sorted(self.path.glob("environment*.json"))
        if any(json.loads(file.read_text(encoding="utf-8")) == now for file in files):
            return
        name = f"environment-{len(files) + 1}.json" if files else "environment.json"
        write_json(self.path / name, now)


def differing_keys(earlier: Any, now: Any, prefix: str = "") -> list[str]:
    """Return what differs between two plain recipes: "finetune.lr (0.1, now 0.2)"."""
    if isinstance(earlier, list) and isinstance(now, list) and len(earlier) == len(now):
        earlier, now = dict(enumerate(earlier)), dict(enumerate(now))
    if not (isinstance(earlier, dict) and isinstance(now, dict)):
        is_same = earlier == now or (earlier != earlier and now != now)  # nan equals nan here
        return [] if is_same else [f"{prefix or 'the recipe'} ({earlier!r:.40}, now {now!r:.40})"]
    differing = []
    for key in [*earlier, *(key for key in now if key not in earlier)]:
        inner = f"{prefix}.{key}" if prefix else str(key)
        if key not in now:
            differing.append(f"{inner} (was {earlier[key]!r:.40}, now absent)")
        elif key not in earlier:
            differing.append(f"{inner} (was absent, now {now[key]!r:.40})")
        else:
            differing += differing_keys(earlier[key], now[key], inner)
    return differing


def _strangers(folder: Path) -> list[str]:
    """What lies in a folder that `open` did not put there."""
    if not folder.is_dir():
        return []
    names = sorted(entry.name for entry in folder.iterdir())
    return [name for name in names if not name.startswith(".")]


class _Dumper(yaml.SafeDumper):
    """Quotes words like 1e-3 that some YAML readers take for numbers."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_numberlike = bool(re.fullmatch(r"[-+.\d][-+.\deE_]*", text))
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="'" if is_numberlike else None
    )


_Dumper.add_representer(str, _represent_text)


def _to_yaml(resolved: dict[str, Any]) -> str:
    return yaml.dump(resolved, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
