"""How far the trainings in flight are: workers note it in small files, the driver's bar reads them.

A worker answers once, at the end, and a group of the paper's size trains for hours; the files work
for processes here and for Ray's on a file system that all of them see.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

EVERY = 1.0
"""Seconds between two notes, and between two looks."""


class StepNote:
    """The worker's side: called with the steps that were done, it now and then writes their sum."""

    def __init__(self, path: str | Path) -> None:
        self.path, self.done, self.written = Path(path), 0, 0.0

    def __call__(self, steps: int) -> None:
        self.done += steps
        now = time.monotonic()
        if now - self.written >= EVERY:
            self.written = now
            with suppress(OSError):  # whoever cannot see the bar's folder trains all the same
                self.path.write_text(str(self.done))


class LiveBar:
    """The driver's side: a bar that moves while groups train.

    Args:
        bar: counts work.
        folder: of the notes; gone afterwards.
        work_per_step: key of a group's job -> work in one step of one of its trials.
    """

    def __init__(self, bar: tqdm, folder: Path, work_per_step: Mapping[str, float]) -> None:
        self.bar, self.folder, self.work_per_step = bar, folder, work_per_step
        self.finished = float(bar.n)
        self._lock, self._over = threading.Lock(), threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="mad-progress", daemon=True)

    def __enter__(self) -> LiveBar:
        if not self.bar.disable:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._watcher.is_alive():
            self._watcher.join()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.bar.close()

    def finish(self, key: str, work: float, said: str) -> None:
        """A group is done, whatever its last note said."""
        with self._lock:
            (self.folder / key).unlink(missing_ok=True)
            self.finished += work
            self.bar.set_postfix_str(said, refresh=False)
        self.look()

    def look(self) -> None:
        """Read the notes and draw."""
        with self._lock:
            self.bar.n = self.finished + sum(
                self.work_per_step.get(note.name, 0.0) * _read(note)
                for note in self.folder.glob("*")
            )
            self.bar.refresh()

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self.look()


def _read(note: Path) -> int:
    with suppress(OSError, ValueError):  # gone by now, or half written
        return int(note.read_text())
    return 0
