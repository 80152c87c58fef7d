"""Protocols: which settings are trained, with which rates and decays, and how a score is chosen.

`full` is the paper's, 66 settings x 3 rates x 2 decays = 396 trainings for each architecture and
seed (Poli et al., 2024, arXiv:2403.17844). `baseline` is its six unchanged tasks. `pocket` is
ours, for minutes on two CPU cores. A number belongs to a protocol and its version: scores of
different ones are never compared.

Ours differs from athms/mad-lab, whose ways `compat="mad-lab"` restores: a validation split stops
the training and chooses rate and decay, and the test split is only reported (there, the test split
does all three); the cosine schedule is applied (there, it never is); accuracy counts tokens (there,
classes, batch by batch); data are `make_data(compat="fixed")`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manticore.config.errors import did_you_mean
from manticore.evaluation.mad.pocket import POCKET_VERSION, pocket_settings
from manticore.evaluation.mad.settings import (
    BASELINES,
    SHORT,
    Setting,
    baseline_settings,
    full_settings,
)

COMPATS = ("fixed", "mad-lab")
DATA_SEED = 12345
"""All models of a protocol see the same examples; seeds draw first weights and the order."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is trained, and how; everything but the architecture and the seed."""

    name: str
    """Profile."""
    version: int
    """Grows with every change that moves a score."""
    settings: tuple[Setting, ...]
    """What is trained."""
    rates: tuple[float, ...] = (1e-4, 5e-4, 1e-3)
    """Learning rates tried at every setting."""
    decays: tuple[float, ...] = (0.0, 0.1)
    """Weight decays tried at every setting, with every rate."""
    d_model: int = 128
    """Width of the models, unless another one is asked for."""
    batch_size: int = 128
    """Examples in a step."""
    measurements: int = 40
    """Looks at the validation split in one training; the best one's weights are scored."""
    epochs: int | None = 200
    """Passes over the training examples; None where `steps` counts."""
    steps: int | None = None
    """Optimizer steps of every setting that does not bring its own."""
    num_valid: int = 1280
    """Examples that choose."""
    num_test: int = 1280
    """Examples that are reported."""
    stop_at: float = 0.999
    """Accuracy at which a training ends early."""
    patience: int = 0
    """Looks without improvement after which a training ends; 0: never for this reason."""
    compat: str = "fixed"
    """"fixed", or "mad-lab" for the original's data, schedule, selection and metric."""
    data_seed: int = DATA_SEED
    """Draws the examples."""

    def __post_init__(self) -> None:
        if self.compat not in COMPATS:
            raise ValueError(f"compat={self.compat!r} is not known. Known: {', '.join(COMPATS)}.")
        if not self.settings:
            raise ValueError("A protocol needs at least one setting.")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("Give either epochs or steps, and not both.")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, each once, in the order of the settings."""
        return tuple(dict.fromkeys(setting.task for setting in self.settings))

    @property
    def grid(self) -> tuple[tuple[float, float], ...]:
        """Pairs of learning rate and weight decay."""
        return tuple(itertools.product(self.rates, self.decays))

    @property
    def metric(self) -> str:
        """The accuracy that is the score."""
        return "batch_macro_accuracy" if self.compat == "mad-lab" else "token_accuracy"

    @property
    def selects_on(self) -> str:
        """The split that chooses rate and decay."""
        return "test" if self.compat == "mad-lab" else "valid"

    def steps_of(self, setting: Setting) -> int:
        """Optimizer steps of one training, if nothing stops it early."""
        if setting.steps is not None:
            return setting.steps
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * -(-setting.num_train // self.batch_size)

    def training(self, steps: int) -> dict[str, Any]:
        """The settings of `train_points` for a training of so many steps."""
        looks = self.epochs if self.compat == "mad-lab" and self.epochs else self.measurements
        settings: dict[str, Any] = {
            "steps": steps,
            "batch_size": self.batch_size,
            "eval_every": max(1, steps // looks),
            "stop_accuracy": self.stop_at,
            "patience": self.patience,
        }
        if self.compat == "mad-lab":
            # Its cosine is never applied, it clips nothing, and it decays every parameter.
            original = {"schedule": "constant", "decay": "all", "grad_clip": 0.0}
            settings |= {**original, "betas": (0.9, 0.999)}
        return settings

    def count(self, seeds: int = 1) -> int:
        """Trainings for one architecture."""
        return len(self.settings) * len(self.grid) * seeds

    def only(self, tasks: Iterable[str]) -> Protocol:
        """The same protocol on some of its tasks, by name or mad-lab's shorthand."""
        wanted = [_task_name(task) for task in tasks]
        kept = tuple(setting for setting in self.settings if setting.task in wanted)
        return dataclasses.replace(self, settings=kept)


def protocol(profile: str, compat: str = "fixed") -> Protocol:
    """The protocol of a profile: "pocket", "baseline" or "full".

    Raises:
        ValueError: no such profile, or one without the asked-for compatibility.
    """
    if profile not in PROFILES:
        raise ValueError(
            f"Unknown profile {profile!r}.{did_you_mean(profile, PROFILES)} Known: "
            f"{', '.join(PROFILES)}."
        )
    found = PROFILES[profile]
    if compat == found.compat:
        return found
    if profile == "pocket" and compat in COMPATS:
        raise ValueError(
            "compat='mad-lab' reproduces the original's selection and metric, and the pocket "
            "settings are not the original's. Choose profile 'baseline' or 'full', or "
            "compat='fixed'."
        )
    return dataclasses.replace(found, compat=compat)


PROFILES: dict[str, Protocol] = {
    "pocket": Protocol(
        name="pocket",
        version=POCKET_VERSION,
        settings=pocket_settings(),
        rates=(2e-3,),
        decays=(0.0,),
        batch_size=16,
        measurements=10,
        num_valid=256,
        num_test=512,
        epochs=1,
    ),
    "baseline": Protocol(name="baseline", version=1, settings=baseline_settings()),
    "full": Protocol(name="full", version=1, settings=full_settings()),
}


def _task_name(given: str) -> str:
    by_short = {short.lower(): task for task, short in SHORT.items()}
    name = by_short.get(given.lower(), given)
    if name not in BASELINES:
        raise ValueError(
            f"Unknown task {given!r}.{did_you_mean(given, BASELINES)} Known: "
            f"{', '.join(f'{task} ({SHORT[task]})' for task in BASELINES)}."
        )
    return name


def shown_protocol(records: Sequence[Mapping[str, Any]]) -> Protocol:
    """What records show of a protocol that this version does not have: an older or own one."""
    settings: dict[str, Setting] = {}
    for record in records:
        given = record["settings"]
        settings[record["setting"]] = Setting(
            task=given["task"],
            name=record["setting"].partition(" ")[2],
            options=given["options"],
            num_train=given["num_train"],
            steps=record["whole_steps"],
        )
    first = records[0]["settings"]
    return Protocol(
        name=first["profile"],
        version=first["protocol_version"],
        settings=tuple(settings.values()),
        rates=tuple(sorted({record["settings"]["lr"] for record in records})),
        decays=tuple(sorted({record["settings"]["weight_decay"] for record in records})),
        compat=first["compat"],
    )
