"""Sweeps on one machine: many trials, a few worker processes, one record per trial.

The parent is the only writer. A trial's record is named after the hash of its settings,
so a finished trial is never run again and a killed sweep goes on where it was.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from manticore.runs import write_json
from manticore.training.workers import Crew

LONGEST_SETTINGS = 400
"""Characters of a failed trial's settings that an error still shows."""

Worker = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One task for the pool; equal settings are the same trial."""

    settings: Mapping[str, Any]
    """Everything that decides the result, as JSON, defaults and seed included."""
    name: str = ""
    """What people call it; not part of its identity."""

    @property
    def key(self) -> str:
        """Return the hash of the settings that names the trial's record."""
        return hashlib.sha256(_canonical(self.settings).encode()).hexdigest()[:20]


class TrialError(ValueError):
    """Some trials failed. The others are finished and recorded; ``failures`` has the rest."""

    def __init__(self, failures: list[tuple[Trial, str]], finished: int) -> None:
        self.failures = failures
        shown = [f"trial {_title(t)}:\n{_indent(text)}" for t, text in failures[:3]]
        more = f"\nand {len(failures) - 3} more" if len(failures) > 3 else ""
        super().__init__(
            f"{len(failures)} of {len(failures) + finished} trials failed; the other {finished} "
            "are recorded. Run the sweep again to repeat only the failed ones.\n"
            + "\n".join(shown)
            + more
        )


def run_trials(
    trials: list[Trial],
    worker: Worker | str,
    *,
    processes: int = 1,
    folder: str | Path,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Run every trial that has no record yet, and return all records in the given order.

    A record is ``{"key", "name", "settings", "worker", "result", "seconds"}`` and lies in
    ``folder/<key>.json``; a failure leaves ``folder/<key>.error.txt`` until it succeeds.

    Args:
        worker: a top-level function from settings to a JSON dict, or ``"module:function"``.
        processes: workers, started fresh (spawn) with the CPU threads divided among them;
            1 runs the trials here, one after the other.
        folder: one sweep per folder; another worker's records there are an error.

    Raises:
        TrialError: after all others are done, if a trial raised or its process died.
    """
    if processes < 1:
        raise ValueError(f"processes={processes}: at least 1 is needed.")
    path = worker_path(worker)
    sweep = _Sweep(Path(folder), path, trials)
    pending = sweep.pending()
    bar = tqdm(
        total=len(sweep.trials),
        initial=len(sweep.trials) - len(pending),
        unit="trial",
        disable=not (progress and sys.stderr.isatty()),
    )
    with bar:
        if processes == 1:
            function = load_worker(path) if isinstance(worker, str) else worker
            _run_here(pending, function, sweep, bar)
        elif pending:
            with Crew(path, min(processes, len(pending))) as crew:
                texts = {trial.key: _canonical(trial.settings) for trial in pending}
                for key, answer in crew.work(texts):
                    sweep.note(key, answer)
                    bar.update(1)
    if sweep.failures:
        raise TrialError(sweep.failures, len(sweep.trials) - len(sweep.failures))
    return [sweep.read(trial.key) for trial in trials]


def worker_path(worker: Worker | str) -> str:
    """Return ``module:function`` for a function that another process can import."""
    if isinstance(worker, str):
        if worker.count(":") != 1:
            raise ValueError(f"worker {worker!r} is not of the form 'package.module:function'.")
        return worker
    name = getattr(worker, "__qualname__", repr(worker))
    if not name.isidentifier() or worker.__module__ == "__main__":
        raise ValueError(
            f"The worker {worker.__module__}.{name} cannot be imported by another process. "
            "Use a function defined at the top level of an importable module."
        )
    return f"{worker.__module__}:{name}"


def load_worker(path: str) -> Worker:
    """Import the function that ``module:function`` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def answer_trial(function: Worker, settings: dict[str, Any]) -> dict[str, Any]:
    """Run one trial; return its result and time, or the traceback of what it raised."""
    started = time.perf_counter()
    try:
        result = function(settings)
        json.dumps(result)
        if not isinstance(result, dict):
            raise TypeError(f"a worker returns a dict, not {type(result).__name__}")
    except (ValueError, OSError) as error:  # of the user's making: the message is enough
        return {"error": traceback.format_exc(), "message": str(error)}
    except Exception:  # whatever it is, the other trials go on and this one is reported at the end
        return {"error": traceback.format_exc()}
    return {"result": result, "seconds": time.perf_counter() - started}


class _Sweep:
    """The records of a folder."""

    def __init__(self, folder: Path, worker: str, trials: list[Trial]) -> None:
        self.folder, self.worker = folder, worker
        self.trials = {trial.key: trial for trial in trials}
        self.failures: list[tuple[Trial, str]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def pending(self) -> list[Trial]:
        return [t for key, t in self.trials.items() if not self._has_record(key)]

    def read(self, key: str) -> dict[str, Any]:
        return json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))

    def note(self, key: str, answer: Mapping[str, Any]) -> None:
        trial, complaint = self.trials[key], self.folder / f"{key}.error.txt"
        if "error" in answer:
            self.failures.append((trial, answer.get("message") or answer["error"]))
            with suppress(OSError):  # a full disk is what failed, not the note about it
                complaint.write_text(answer["error"], encoding="utf-8")
            return
        names = {"key": key, "name": trial.name, "settings": dict(trial.settings)}
        record = {**names, "worker": self.worker, **answer}
        write_json(self.folder / f"{key}.json", record)
        complaint.unlink(missing_ok=True)

    def _has_record(self, key: str) -> bool:
        if not (self.folder / f"{key}.json").is_file():
            return False
        found = self.read(key)["worker"]
        if found != self.worker:
            raise ValueError(
                f"{self.folder} holds trials of {found}, not of {self.worker}. "
                "Use one folder per sweep."
            )
        return True


def _run_here(pending: list[Trial], function: Worker, sweep: _Sweep, bar: tqdm) -> None:
    for trial in pending:
        # The copy is what a worker process would get, and keeps the record's settings safe.
        sweep.note(trial.key, answer_trial(function, json.loads(_canonical(trial.settings))))
        bar.update(1)


def _canonical(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _title(trial: Trial) -> str:
    """Name and settings; a name alone when the settings would fill a screen."""
    settings = _canonical(trial.settings)
    if trial.name and len(settings) > LONGEST_SETTINGS:
        return trial.name
    return f"{trial.name or trial.key} with {settings}"


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines()[-8:])
