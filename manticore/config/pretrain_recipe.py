"""The recipe of a small model trained from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from manticore.config.data_sections import DataConfig
from manticore.config.ids import check_name
from manticore.config.numbers import check_least
from manticore.config.recipes import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    kind: Literal["pretrain"] = "pretrain"
    """Which pipeline reads this file."""
    name: str
    """Name of the model and of its run."""
    seed: int = 0
    """Of the initial weights and of the order of the data."""
    model: dict[str, int | float | str | bool | None]
    """Hugging Face config: model_type and any of its fields."""
    data: DataConfig
    """Text of the model's own kind; only the pretrain split is trained on."""
    train: OptimizerConfig
    """Length and step size of the training."""
    ngram_order: int = 5
    """The model must beat a back-off model of this order trained on the same rows; 0: skip."""
    validate_every: int = 200
    """Steps between losses on the validation split."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_least(
            {"ngram_order": (self.ngram_order, 0), "validate_every": (self.validate_every, 1)}
        )
        shares = self.data.splits
        if not (shares.pretrain and shares.validation and shares.test):
            raise ValueError("data.splits: give pretrain, validation and test shares above 0.")
