"""Where the trainings of a sweep run: here, in worker processes, or on a Ray cluster.

All take JSON texts and yield JSON answers, and none writes: the caller keeps the records.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from manticore.training.pool import answer_trial, load_worker
from manticore.training.workers import Crew, cpu_threads

EXECUTORS = ("local", "ray")

Answers = Iterator[tuple[str, dict[str, Any]]]


def check_executor(executor: str, processes: int) -> None:
    """Raise when a sweep could not start."""
    if executor not in EXECUTORS:
        raise ValueError(f"Unknown executor {executor!r}. Known: {', '.join(EXECUTORS)}.")
    if processes < 1:
        raise ValueError(f"{processes} workers can do nothing. Choose 1 or more.")
    if executor == "ray":
        _import_ray()


def answers(
    jobs: Mapping[str, str], worker: str, executor: str = "local", processes: int = 1
) -> Answers:
    """Yield (key, answer) for each job as it gets done, in any order.

    Args:
        jobs: key -> settings as JSON.
        worker: "module:function" from settings to a JSON dict.
        processes: at once; 1 runs the jobs of the local executor in this process.
    """
    check_executor(executor, processes)
    if executor == "ray":
        yield from _by_ray(jobs, worker, processes)
    elif processes == 1:
        function = load_worker(worker)
        for key, text in jobs.items():
            yield key, answer_trial(function, json.loads(text))
    elif jobs:
        with Crew(worker, min(processes, len(jobs))) as crew:
            yield from crew.work(jobs)


def answer_text(worker: str, text: str) -> str:
    """Run one job in whatever process this is; JSON in, JSON out."""
    return json.dumps(answer_trial(load_worker(worker), json.loads(text)))


def _by_ray(jobs: Mapping[str, str], worker: str, processes: int) -> Answers:
    ray = _import_ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(**_ray_options(processes))
    try:
        # A job whose process died is reported, as by the local pool, and not tried again.
        remote = ray.remote(num_cpus=1, max_retries=0)(answer_text)
        waiting = list(jobs.items())[::-1]
        running: dict[Any, str] = {}
        while waiting or running:
            while waiting and len(running) < processes:
                key, text = waiting.pop()
                running[remote.remote(worker, text)] = key
            for reference in ray.wait(list(running), num_returns=1)[0]:
                yield running.pop(reference), _hear(ray, reference)
    finally:
        if is_ours:
            ray.shutdown()


def _hear(ray: Any, reference: Any) -> dict[str, Any]:
    try:
        return json.loads(ray.get(reference))
    except ray.exceptions.RayError as error:
        return {"error": f"Ray lost the job: {error}"}


def _ray_options(processes: int) -> dict[str, Any]:
    """A cluster that RAY_ADDRESS names, or one of this machine's, with our modules to import."""
    threads = str(max(1, cpu_threads() // processes))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**dict.fromkeys(names, threads), "PYTHONPATH": path}
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": environment},
        "log_to_driver": False,
        "logging_level": "ERROR",
    }
    if "RAY_ADDRESS" not in os.environ:
        options |= {"address": "local", "num_cpus": processes, "include_dashboard": False}
    return options


def _import_ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ValueError(
            "--executor ray needs Ray. Install it with pip install 'manticore-lm[ray]', or leave "
            "the option out for a local pool."
        ) from error
    return ray
