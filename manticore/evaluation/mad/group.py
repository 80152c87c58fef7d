"""Train one group in a worker: its data, its models, and what became of each trial."""

from __future__ import annotations

import dataclasses
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from manticore.evaluation.mad.entry import Entry
from manticore.evaluation.mad.live_steps import StepNote
from manticore.evaluation.mad.settings import Setting

if TYPE_CHECKING:
    import torch
    from torch import nn

    from manticore.evaluation.mad.training_types import Outcome, SplitArrays

DIGITS = 5
"""Of the losses of a curve; the final numbers keep all of theirs."""


def train_group(job: dict[str, Any]) -> dict[str, Any]:
    """Train what differs in rate, decay and seed only.

    Args:
        job: "shared" settings as in `plan.shared_settings`, and "points" with the rest; "note", a
            file for the steps done, if someone watches.

    Returns:
        {"outcomes": one JSON object for each point, in order}.
    """
    from manticore.evaluation.mad.training import train_points
    from manticore.evaluation.mad.training_types import Point, TrainSettings

    shared = job["shared"]
    training = {**shared["training"], "betas": tuple(shared["training"]["betas"])}
    outcomes = train_points(
        partial(build_model, shared),
        [Point(**point) for point in job["points"]],
        splits_of(shared),
        TrainSettings(**training),
        StepNote(job["note"]) if "note" in job else None,
        engine=job.get("engine", "auto"),
        device=device_of(job),
    )
    bounds = bounds_of(shared)
    return {"outcomes": [{**outcome_record(outcome), **bounds} for outcome in outcomes]}


def build_model(shared: dict[str, Any], generator: torch.Generator) -> nn.Module:
    """The model of a group, its weights drawn from `generator`."""
    return entry_of(shared).build(setting_of(shared), shared["compat"], generator)


def entry_of(shared: dict[str, Any]) -> Entry:
    """The architecture that a trial's settings describe."""
    if "hf_config" in shared:
        return Entry(name="", hf_config=shared["hf_config"])
    return Entry(
        name="",
        layers=tuple(shared["layers"]),
        d_model=shared["d_model"],
        module=shared["module"]["class"] if "module" in shared else None,
    )


def setting_of(shared: dict[str, Any]) -> Setting:
    """The task setting that a trial's settings describe."""
    return Setting(
        task=shared["task"], name="", options=shared["options"], num_train=shared["num_train"]
    )


def splits_of(shared: dict[str, Any]) -> SplitArrays:
    """The three splits; with compat "mad-lab" the test split also plays validation."""
    from manticore.evaluation.mad.training_types import SplitArrays

    options = tuple(sorted(shared["options"].items()))
    sizes = tuple(shared[f"num_{split}"] for split in ("train", "valid", "test"))
    train, valid, test = _draw(
        shared["task"], options, sizes, shared["data_seed"], shared["compat"]
    )
    return SplitArrays(train=train, valid=valid, test=test)


@lru_cache(maxsize=2)
def _draw(
    task: str, options: tuple[tuple[str, Any], ...], sizes: tuple[int, ...], seed: int, compat: str
) -> list[Any]:
    """Splits of a setting, kept while a worker trains one group after another on it."""
    from manticore.tasks.mad import make_data

    names = ("train", "test", "test") if compat == "mad-lab" else ("train", "valid", "test")
    if compat == "mad-lab":
        sizes = (sizes[0], sizes[2], sizes[2])
    return [
        make_data(task, size, seed, split=name, compat=compat, **dict(options))
        for name, size in zip(names, sizes, strict=True)
    ]


def bounds_of(shared: dict[str, Any]) -> dict[str, float]:
    """What the best and the most ignorant model reach, for normalisation."""
    from manticore.tasks.mad import ceiling, chance

    task, options, compat = shared["task"], shared["options"], shared["compat"]
    return {
        "ceiling": float(ceiling(task, shared["num_train"], compat, **options)),
        "chance": float(chance(task, compat, **options)),
    }


def outcome_record(outcome: Outcome) -> dict[str, Any]:
    """A trial's end as JSON; a measurement that never was is None."""
    return {
        "diverged": outcome.diverged,
        "stopped": outcome.stopped,
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "valid": _plain(outcome.valid),
        "test": _plain(outcome.test),
        "curve": [
            [p.step, *(round(v, DIGITS) for v in (p.train_loss, p.valid_loss, p.valid_accuracy))]
            for p in outcome.curve
        ],
        "engine": outcome.engine,
        "seconds": outcome.seconds,
    }


def device_of(job: dict[str, Any]) -> str:
    """Where to train: as asked for, else on a GPU if there is one."""
    import torch

    return job.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")


def _plain(metrics: Any) -> dict[str, Any] | None:
    return None if metrics is None else dataclasses.asdict(metrics)
