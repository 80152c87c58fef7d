"""The recipe of a transfer: a teacher, rows of students, and the stages that they go through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from manticore.config.data_sections import DataConfig
from manticore.config.ids import check_ids, check_name
from manticore.config.numbers import check_least, check_rates
from manticore.config.recipes import ComponentConfig, OptimizerConfig, SampleConfig

Setting = int | float | str | bool


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    lr: float = 1e-2
    """Peak learning rate."""
    match: Literal["mixers", "blocks"] = "mixers"
    """What is matched when each layer is fed what the teacher's was: mixer or whole block."""


@dataclass(frozen=True, kw_only=True)
class FreezeConfig:
    window: int = 2
    """Validation losses in a window."""
    threshold: float = 0.01
    """Relative improvement from window to window below which it is a strike."""
    patience: int = 1
    """Strikes in a row after which everything is trained."""
    warmup_steps: int = 10
    """Steps in which the inherited weights' learning rate rises to that of the others."""
    latest: float | None = 0.5
    """Share of the steps after which everything is trained anyway; null: only by the rule."""


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    weight: float = 0.5
    """Share of the teacher's distribution in the loss; the rest is cross-entropy."""
    temperature: float = 1.0
    """Of both distributions."""


@dataclass(frozen=True, kw_only=True)
class StudentAdapterConfig:
    method: str = "lora"
    """A method of PEFT, such as lora or more, on the inherited matrices; they stay frozen under
    it and take it up at the end."""
    settings: dict[str, Setting] = field(default_factory=dict)
    """Of the method."""


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    id: str
    """Short name, such as paper."""
    label: str
    """What the table calls it."""
    mixer: str
    """Mixer of every layer that is not kept."""
    settings: dict[str, Setting] = field(default_factory=dict)
    """Of the mixer, where they differ from its defaults."""
    keep: tuple[int, ...] = ()
    """Layers that stay attention."""
    copy: Literal["scratch", "no-output", "paper", "all"] = "paper"
    """scratch: nothing; no-output: embeddings, norms, MLPs; paper: W_o too; all: Q, K, V too."""
    calibrate: bool = True
    """Set the new mixers' output scale on a batch."""
    align: int = 0
    """Steps of layer-wise matching to begin with, out of the row's own, so that all rows of a
    length see as many tokens."""
    freeze: bool = False
    """Keep inherited weights frozen until the loss improvement threshold."""
    distil: bool = False
    """Train on the teacher's distribution, too."""
    adapter: StudentAdapterConfig | None = None
    """Train an adapter instead of the inherited matrices."""
    length: float = 1.0
    """Steps, as a multiple of train.steps."""
    lr: float | None = None
    """Its only learning rate, instead of the recipe's."""

    @property
    def target(self) -> dict[str, Setting]:
        """The mixer with its settings, as `transfer` takes it."""
        return {"mixer": self.mixer, **self.settings}


@dataclass(frozen=True, kw_only=True)
class TransferGoal:
    kind: Literal["better-by", "faster-by", "near-teacher"]
    """better-by: nats below another row; faster-by: tokens to its final loss, as a quotient;
    near-teacher: nats above the teacher, before any training but alignment."""
    row: str
    """Whose result is judged."""
    than: str | None = None
    """Row to compare with."""
    amount: float
    """Nats, or the quotient."""


@dataclass(frozen=True, kw_only=True)
class TransferRecipe:
    kind: Literal["transfer"] = "transfer"
    """Which pipeline reads this file."""
    name: str
    """Name of the run."""
    seed: int = 0
    """Of new weights and of the order of the data."""
    teacher: ComponentConfig
    """The pretrained transformer."""
    data: DataConfig
    """What students are trained and measured on."""
    train: OptimizerConfig
    """Length and step size, the same for all rows."""
    validate_every: int = 5
    """Steps between losses on the validation split, which the threshold reads."""
    calibration_rows: int = 16
    """Rows of the training split on which new mixers are scaled."""
    align: AlignConfig = AlignConfig()
    """Layer-wise matching."""
    freeze: FreezeConfig = FreezeConfig()
    """When inherited weights are trained."""
    distil: DistilConfig = DistilConfig()
    """Learning from the teacher's distribution."""
    rates: tuple[float, ...] = ()
    """Learning rates that every row tries with the first seed; validation chooses. Three or more
    grow where the best lies at their end, at most twice; two are tried as they are."""
    rows: tuple[StudentConfig, ...]
    """The students."""
    goals: tuple[TransferGoal, ...] = ()
    """What is judged at the end."""
    samples: SampleConfig = field(default_factory=SampleConfig)
    """Texts that teacher and students continue in the report."""

    def __post_init__(self) -> None:
        check_name(self.name)
        ids = [row.id for row in self.rows]
        if not ids:
            raise ValueError("There are no rows. Give at least one.")
        check_ids("rows", ids, taken=["teacher"])
        for row in self.rows:
            self._check_row(row)
        for goal in self.goals:
            self._check_goal(goal, ids)
        self._check_numbers()

    def steps_of(self, row: StudentConfig) -> tuple[int, int]:
        """Steps of alignment and of training."""
        return row.align, max(1, round(self.train.steps * row.length)) - row.align

    def _check_row(self, row: StudentConfig) -> None:
        align, steps = self.steps_of(row)
        if align < 0 or steps < 0:
            raise ValueError(
                f"Row {row.id} aligns for {align} of {align + steps} steps. Give it 0 to "
                f"{align + steps}, or a larger length."
            )
        if steps == 0 and (row.freeze or row.distil or row.adapter):
            raise ValueError(
                f"Row {row.id} only aligns, so freeze, distil and adapter do nothing. Leave them "
                "out, or align for fewer steps."
            )
        if row.copy == "scratch" and (row.freeze or row.adapter):
            raise ValueError(
                f"Row {row.id} inherits nothing that freeze or adapter could be about. Copy "
                "something, or leave them out."
            )
        if row.freeze and row.adapter:
            raise ValueError(
                f"Row {row.id} has freeze and adapter; under an adapter the inherited weights stay "
                "frozen to the end. Choose one."
            )

    def _check_goal(self, goal: TransferGoal, ids: list[str]) -> None:
        if (goal.than is None) != (goal.kind == "near-teacher"):
            raise ValueError(
                f"Goal {goal.kind} of {goal.row}: `than` names the row to compare with; "
                "near-teacher has none, the others need one."
            )
        unknown = {goal.row, goal.than or goal.row} - set(ids)
        if unknown:
            raise ValueError(
                f"A goal names {', '.join(sorted(unknown))}, which is no row. Known: "
                f"{', '.join(ids)}."
            )

    def _check_numbers(self) -> None:
        rule = self.freeze
        check_least(
            {
                "validate_every": (self.validate_every, 1),
                "calibration_rows": (self.calibration_rows, 0),
                "freeze.warmup_steps": (rule.warmup_steps, 0),
                "freeze.window": (rule.window, 1),
                "freeze.patience": (rule.patience, 1),
            }
        )
        check_rates("rates", self.rates)
        check_rates("align.lr", [self.align.lr])
        check_rates("the rows' lr", [row.lr for row in self.rows if row.lr is not None])
        if rule.latest is not None and not 0 <= rule.latest <= 1:
            raise ValueError(f"freeze.latest={rule.latest:g} is a share: 0 to 1, or null.")
        if not 0 <= self.distil.weight <= 1 or self.distil.temperature <= 0:
            raise ValueError(
                f"distil.weight={self.distil.weight:g} must be between 0 and 1, and "
                f"distil.temperature={self.distil.temperature:g} above 0."
            )
