"""Run what is planned and not yet recorded: groups in, one record per trial out.

Trials that differ only in rate, decay and seed go to one worker as one stacked model. A killed
sweep loses at most the groups in flight; whoever runs it again goes on with the rest.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from manticore.evaluation.mad.executors import answers, check_executor
from manticore.evaluation.mad.live_steps import LiveBar
from manticore.evaluation.mad.plan import PlannedTrial
from manticore.evaluation.mad.results import SCHEMA, Record, ResultsFolder
from manticore.training.pool import TrialError

WORKER = "manticore.evaluation.mad.group:train_group"
STACK = 18
"""Models that train as one at most: three seeds of the paper's six points."""
NOTES = ".steps"
"""Folder, beside the records, of how far the trainings in flight are."""
BAR = "{desc} {percentage:3.0f}%|{bar}| {postfix}[{elapsed}<{remaining}]"

Group = list[PlannedTrial]


def run_sweep(
    planned: Sequence[PlannedTrial],
    folder: ResultsFolder,
    *,
    executor: str = "local",
    processes: int = 1,
    stack: int = STACK,
    progress: bool = True,
    worker: str = WORKER,
) -> list[Record]:
    """Train what has no record in the folder; return the records of all that is planned.

    Args:
        folder: open; this process is its only writer.
        executor: "local", a pool of spawned processes, or "ray".
        processes: groups at once; 1 (local) trains them here, one after the other.
        stack: trials in a group at most.
        worker: "module:function" from {"shared", "points"}, and "note" (a file for the steps done)
            where there is a bar, to {"outcomes": [...]}.

    Raises:
        TrialError: after all others are done, if some could not be run. A training that diverges
            is a record, not an error.
    """
    check_executor(executor, processes)
    if stack < 1:
        raise ValueError(f"stack={stack}: a group has at least one trial.")
    groups = pending_groups(planned, folder, stack)
    failures: list[Any] = []
    work = _work_of(planned)
    bar = _bar(planned, groups.values(), work, progress)
    notes = (folder.path / NOTES).resolve()
    jobs = {key: _job(g, None if bar.disable else notes / key) for key, g in groups.items()}
    with LiveBar(bar, notes, {key: work(g[0]) / g[0].steps for key, g in groups.items()}) as live:
        for key, answer in answers(jobs, worker, executor, processes):
            group = groups[key]
            _note(group, answer, folder, failures)
            live.finish(key, sum(map(work, group)), _counted(planned, folder))
    if failures:
        raise TrialError(failures, len(planned) - len(failures))
    return [folder.read(one.trial.key) for one in planned]


def pending_groups(
    planned: Sequence[PlannedTrial], folder: ResultsFolder, stack: int = STACK
) -> dict[str, Group]:
    """What has no record yet, in stacks: key of the job -> its trials."""
    by_shared: dict[str, Group] = {}
    for one in {one.trial.key: one for one in planned}.values():
        if not folder.has(one.trial.key):
            by_shared.setdefault(one.group, []).append(one)
    stacks = [
        group[start : start + stack]
        for group in by_shared.values()
        for start in range(0, len(group), stack)
    ]
    return {_job_key(group): group for group in stacks}


def _job_key(group: Group) -> str:
    return group[0].trial.key


def _job(group: Group, note: Path | None) -> str:
    job: dict[str, Any] = {"shared": group[0].shared, "points": [one.point for one in group]}
    if note is not None:
        job["note"] = str(note)
    return json.dumps(job, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _note(
    group: Group, answer: Mapping[str, Any], folder: ResultsFolder, failures: list[Any]
) -> None:
    """Keep each trial's record, or why there is none."""
    if "error" in answer:
        text = answer.get("message") or answer["error"]
        folder.complain(_job_key(group), answer["error"])
        failures += [(one.trial, text) for one in group]
        return
    outcomes = answer["result"]["outcomes"]
    for one, outcome in zip(group, outcomes, strict=True):
        folder.write(one.trial.key, _record(one, outcome))


def _record(one: PlannedTrial, outcome: Mapping[str, Any]) -> Record:
    """One finished training."""
    return {
        "schema": SCHEMA,
        "key": one.trial.key,
        **one.about,
        "settings": dict(one.trial.settings),
        "result": dict(outcome),
        "planned_flops": one.flops,
    }


def _bar(
    planned: Sequence[PlannedTrial],
    groups: Iterable[Group],
    work: Callable[[PlannedTrial], float],
    progress: bool,
) -> tqdm:
    total, waiting = sum(map(work, planned)), sum(work(one) for group in groups for one in group)
    return tqdm(
        total=total,
        initial=total - waiting,
        desc="training",
        bar_format=BAR,
        # What is recorded already says nothing about the speed of now.
        smoothing=0,
        disable=not (progress and sys.stderr.isatty()),
    )


def _work_of(planned: Sequence[PlannedTrial]) -> Callable[[PlannedTrial], float]:
    """How long a trial takes, in FLOPs, or in steps if some architecture has no formula."""
    if all(one.flops is not None for one in planned):
        return lambda one: one.flops or 0.0
    return lambda one: float(one.steps)


def _counted(planned: Sequence[PlannedTrial], folder: ResultsFolder) -> str:
    done = sum(folder.has(one.trial.key) for one in planned)
    return f"{done}/{len(planned)} trainings "
