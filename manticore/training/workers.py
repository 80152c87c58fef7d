"""Worker processes of a sweep: spawned, fed one trial at a time, replaced when they die."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from logging import getLogger
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# glibc takes blocks above 32 MiB from the kernel and gives them back at once, so that torch pays
# each large temporary in page faults. Measured on a step of two blocks at d_model 128 with 128
# sequences of 128 tokens, on one thread of an AMD EPYC: Hyena 2.84 CPU seconds, and 1.29 where
# blocks are kept (902,523 page faults and none), for at most 2.4 GiB in place of 1.8; a
# Transformer, GLA and Mamba 1 to 5 % less, for the same memory. What a user sets stays.
_KEEP_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


class Crew:
    """A few processes that run one function. Leaving the context ends them."""

    def __init__(self, worker: str, size: int) -> None:
        self.worker, self.size = worker, size
        self.threads = max(1, cpu_threads() // size)
        self.members: dict[Connection, SpawnProcess] = {}

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        for line in self.members:
            line.close()  # who waits for a trial leaves by itself, and cleans up
        for process in self.members.values():
            if error is None:
                process.join(timeout=5)
            process.terminate()
            process.join(timeout=5)

    def work(self, texts: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (key, answer) for each JSON text as it gets done, in any order."""
        waiting = list(texts.items())[::-1]
        busy: dict[Connection, str] = {}
        while waiting or busy:
            while waiting and len(busy) < self.size:
                line = next((one for one in self.members if one not in busy), None) or self._hire()
                key, text = waiting.pop()
                busy[line] = key
                # A worker that died idle is noticed when it is listened to.
                with suppress(OSError):
                    line.send_bytes(text.encode())
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                yield busy.pop(ready), self._hear(ready)

    def _hire(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        with _environment_of_a_worker(self.threads):
            process = context.Process(target=serve, args=(self.worker, theirs), daemon=True)
            process.start()
        theirs.close()  # so that the worker's death ends the line
        self.members[ours] = process
        return ours

    def _hear(self, line: Connection) -> dict[str, Any]:
        try:
            return json.loads(line.recv_bytes())
        except (EOFError, OSError):
            process = self.members.pop(line)
            process.join()
            line.close()
            return {
                "error": f"The worker process died with exit code {process.exitcode} "
                "(a negative number is a signal; -9 often means that memory ran out)."
            }


def serve(worker: str, line: Connection) -> None:
    """Answer trials until the parent hangs up. Messages are JSON, never pickles."""
    _die_with_parent()
    getLogger("bitsandbytes").setLevel("ERROR")  # the parent has warned, or wanted no warning
    from manticore.training.pool import answer_trial, load_worker

    def load_and_run(settings: dict[str, Any]) -> dict[str, Any]:
        return load_worker(worker)(settings)  # in here, a failing import is reported too

    try:
        while True:
            settings = json.loads(line.recv_bytes())
            line.send_bytes(json.dumps(answer_trial(load_and_run, settings)).encode())
    except (EOFError, OSError, KeyboardInterrupt):
        return  # the parent is gone, or stops us too


def _die_with_parent() -> None:
    """End this process at once when its parent is gone, in the middle of a trial too.

    A parent that was killed cannot say so, and a worker that went on would write into the same
    folders as the workers of the next run.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def cpu_threads() -> int:
    """Return the number of threads that computations here may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _environment_of_a_worker(threads: int) -> Iterator[None]:
    # A spawned process inherits the environment before it imports anything.
    ours = {name: str(threads) for name in _THREAD_VARIABLES}
    ours |= {name: text for name, text in _KEEP_BLOCKS.items() if name not in os.environ}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
