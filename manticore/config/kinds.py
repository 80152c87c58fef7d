"""The kinds of recipes: the class behind each, and the verb that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from manticore.config.adapter_recipe import AdaptRecipe
from manticore.config.pretrain_recipe import PretrainRecipe
from manticore.config.recipes import HybridRecipe
from manticore.config.transfer_recipe import TransferRecipe


@dataclass(frozen=True, kw_only=True)
class RecipeKind:
    """What a recipe's `kind` stands for."""

    recipe: type[Any]
    """Its dataclass."""
    verb: str
    """Which verb runs it."""
    about: str
    """What it describes, in a few words."""


RECIPE_KINDS: dict[str, RecipeKind] = {
    "hybrid": RecipeKind(
        recipe=HybridRecipe, verb="run", about="a hybrid of pretrained models, and its baselines"
    ),
    "pretrain": RecipeKind(
        recipe=PretrainRecipe, verb="run", about="a small model trained from scratch"
    ),
    "adapt": RecipeKind(
        recipe=AdaptRecipe, verb="adapt run", about="methods of adaptation, compared"
    ),
    "transfer": RecipeKind(
        recipe=TransferRecipe, verb="transfer run", about="a transformer made into another model"
    ),
}
"""In the order in which they are explained."""
