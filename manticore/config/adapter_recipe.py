"""Recipes that fine-tune one pretrained model by several methods: strict dataclasses, no behaviour.

Paths that begin with `./` or `../` are relative to the recipe's own file; `hf:owner/name@config` is
a data set on the hub; anything else is a path as given or, for models, a name on the hub.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from manticore.config.example_sections import AdaptDataConfig
from manticore.config.ids import check_ids, check_name
from manticore.config.numbers import check_least, check_rates
from manticore.config.recipes import OptimizerConfig

Setting = int | float | str | bool | list[str] | dict[str, int] | None
HIGHER_IS_BETTER = ("accuracy", "matthews", "exact-match")
Metric = Literal["loss", "accuracy", "matthews", "exact-match", "bits-per-byte"]


@dataclass(frozen=True, kw_only=True)
class AdaptModelConfig:
    path: str
    """Folder or hub name of the pretrained model (safetensors)."""
    name: str | None = None
    """Name in tables; default the last part of the path."""
    tokenizer: str | None = None
    """Folder or name of its tokenizer, when it is not beside the model."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the frozen weights; adapters are trained in fp32."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Frozen weights in fewer bits (needs bitsandbytes); not for full fine-tuning."""
    licence: str = ""
    """Shown in the model card."""


@dataclass(frozen=True, kw_only=True)
class AdaptTrainConfig(OptimizerConfig):
    steps: int = 0
    """Optimizer steps; 0: as many as `epochs` takes."""
    epochs: float = 0.0
    """Passes over the training examples, when `steps` is 0."""
    validate_every: int = 0
    """Steps between validation losses; 0: only at the end."""

    def __post_init__(self) -> None:
        self.check_numbers()
        check_least({"validate_every": (self.validate_every, 0)})
        if self.steps < 0 or (self.steps > 0) == (self.epochs > 0):
            raise ValueError(
                f"train.steps={self.steps} and train.epochs={self.epochs:g}: set exactly one of "
                "them."
            )


@dataclass(frozen=True, kw_only=True)
class RateSearchConfig:
    rates: tuple[float, ...] = ()
    """Learning rates that every method tries, in order; empty: only train.lr. Three or more grow
    where the best lies at their end; two are tried as they are."""
    extensions: int = 2
    """How often a method's grid of three rates or more may grow where its best lies at the end."""
    by: Metric = "loss"
    """Validation measure that chooses the rate."""


@dataclass(frozen=True, kw_only=True)
class AdaptEvaluationConfig:
    metrics: tuple[Metric, ...] = ("loss",)
    """What to measure on validation and test; the first is the table's main column."""
    batch_size: int = 32
    """Rows at a time."""
    max_new_tokens: int = 32
    """Exact match: longest answer that is generated, greedily."""
    answer_pattern: str = ""
    """Exact match: regular expression with one group; its last match is the answer."""
    generate_rows: int | None = None
    """Exact match: examples for which an answer is generated; default eval_rows."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    id: str
    """Short name, such as more-quarter."""
    label: str = ""
    """What the table calls it; default the id."""
    method: str
    """full, or a method of PEFT that changes modules: lora, gralora, more, miss, oft, ia3 ..."""
    settings: dict[str, Setting] = field(default_factory=dict)
    """Its settings under PEFT's names, such as r or nblocks."""
    targets: tuple[str, ...] = ("default",)
    """Module names; default is every layer that can take an adapter; all-linear is PEFT's."""
    lr: float | None = None
    """Its own learning rate, in place of the search."""


@dataclass(frozen=True, kw_only=True)
class GoalConfig:
    row: str
    """Id of the method that should do well."""
    against: str
    """Id of the method whose result it should reach, within one standard deviation."""


@dataclass(frozen=True, kw_only=True)
class ShapeSearchConfig:
    budget: int
    """Most parameters that an adapter may have."""
    targets: tuple[str, ...] = ("default",)
    """Names of modules to choose among; default is every layer that can take an adapter."""
    nblocks: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of blocks to choose from."""
    block_ranks: tuple[int, ...] = (1, 2, 4, 8)
    """Block ranks to choose from."""
    probe: Literal["gradient", "short-run"] = "short-run"
    """What the one-shot mode decomposes: the gradient, or the change by a short full-rank run."""
    probe_steps: int = 20
    """Batches of the gradient, or steps of the run."""
    probe_lr: float = 5e-4
    """Learning rate of the short run."""
    candidates: int = 8
    """Shapes that successive halving starts with; the one-shot choice is one of them."""
    rungs: tuple[int, ...] = (20, 60)
    """Steps of training after each of which the worse candidates are dropped."""
    keep: float = 0.5
    """Share of the candidates that a rung keeps."""
    finalists: int = 2
    """Shapes that join the table beside the recipe's methods."""


@dataclass(frozen=True, kw_only=True)
class AdaptRecipe:
    kind: Literal["adapt"] = "adapt"
    """Which pipeline reads this file."""
    name: str
    """Name of the run."""
    seed: int = 0
    """First seed: of new weights and of the order of the data."""
    model: AdaptModelConfig
    """What is fine-tuned."""
    data: AdaptDataConfig
    """On what."""
    train: AdaptTrainConfig
    """How; the same for every method but for the learning rate."""
    rates: RateSearchConfig = RateSearchConfig()
    """The search for a learning rate, the same for every method."""
    evaluate: AdaptEvaluationConfig = AdaptEvaluationConfig()
    """What is measured."""
    methods: tuple[MethodConfig, ...]
    """The rows of the table."""
    goals: tuple[GoalConfig, ...] = ()
    """What the table should show; the report says whether it does."""
    search: ShapeSearchConfig | None = None
    """For `manticore adapt search`: shapes of MoRe to choose from."""

    def __post_init__(self) -> None:
        check_name(self.name)
        ids = [method.id for method in self.methods]
        if not ids:
            raise ValueError("There are no methods. Give at least one.")
        check_ids("methods", ids)
        for goal in self.goals:
            unknown = {goal.row, goal.against} - set(ids)
            if unknown:
                raise ValueError(
                    f"A goal names {', '.join(sorted(unknown))}, which is no method. Known: "
                    f"{', '.join(ids)}."
                )
        self._check_training()
        self._check_measures()

    def _check_training(self) -> None:
        check_least(self._least())
        check_rates("rates.rates", self.rates.rates)
        check_rates("the methods' lr", [m.lr for m in self.methods if m.lr is not None])
        if self.data.packing and self.data.format not in ("instruction", "chat"):
            raise ValueError(
                f"data.packing is for instruction and chat, not {self.data.format}: running text "
                "is packed anyway, and a label needs a row of its own. Leave it out."
            )

    def _least(self) -> dict[str, tuple[int | None, int]]:
        """Whole numbers that are given, and the least that each may be."""
        data, evaluate = self.data, self.evaluate
        return {
            "data.seq_len": (data.seq_len, 2),
            "data.passage_chars": (data.passage_chars, 1),
            "data.train_rows": (data.train_rows, 1),
            "data.eval_rows": (data.eval_rows, 1),
            "rates.extensions": (self.rates.extensions, 0),
            "evaluate.batch_size": (evaluate.batch_size, 1),
            "evaluate.max_new_tokens": (evaluate.max_new_tokens, 1),
            "evaluate.generate_rows": (evaluate.generate_rows, 1),
        }

    def _check_measures(self) -> None:
        allowed = {
            "classification": ("loss", "accuracy", "matthews"),
            "text": ("loss", "bits-per-byte"),
            "instruction": ("loss", "bits-per-byte", "exact-match"),
            "chat": ("loss", "bits-per-byte"),
        }[self.data.format]
        for metric in (*self.evaluate.metrics, self.rates.by):
            if metric not in allowed:
                raise ValueError(
                    f"{metric} cannot be measured on {self.data.format}. Choose from "
                    f"{', '.join(allowed)}."
                )
        if not self.evaluate.metrics or self.rates.by not in ("loss", *self.evaluate.metrics):
            raise ValueError(
                f"rates.by={self.rates.by} is not among evaluate.metrics. Add it there."
            )
