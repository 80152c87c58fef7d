"""Everything about a hybrid recipe that can be checked before any compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manticore.config.recipes import HybridRecipe
from manticore.hybrids.assembly import component_names, plain_partition
from manticore.hybrids.configuration_manticore import ManticoreConfig
from manticore.hybrids.mixture import checked_rows
from manticore.models.loading import check_loadable
from manticore.models.pretrained import check_length
from manticore.text.prepared import resolve_path


def check_recipe(recipe: HybridRecipe, base: Path) -> None:
    """Raise a ValueError for what cannot work: components, partition, mixture, lengths, rows."""
    if not recipe.components:
        raise ValueError("components is empty. Name at least one pretrained model.")
    config = recipe_config(recipe, base)
    if recipe.hybrid.mixture is not None:
        shape = (config.num_blocks, config.num_components)
        checked_rows(recipe.hybrid.mixture, shape, "hybrid.mixture")
    for part in config.components:
        check_length(part, recipe.data.seq_len)
    _check_names(recipe)


def recipe_config(recipe: HybridRecipe, base: Path) -> ManticoreConfig:
    """The hybrid's config from the components' configs alone; no weight is read."""
    configs = [check_loadable(resolve_path(c.path, base)) for c in recipe.components]
    settings = recipe.hybrid
    return ManticoreConfig(
        components=configs,
        num_blocks=settings.num_blocks,
        partition=plain_partition(settings.partition),
        mixing=settings.mixing,
        loyalty=settings.loyalty,
        learn_loyalty=settings.learn_loyalty,
        router=settings.router,
        host=settings.host,
        vocab_size=_vocabulary(recipe, configs),
    )


def _vocabulary(recipe: HybridRecipe, configs: list[Any]) -> int:
    if any(component.tokenizer for component in recipe.components):
        return configs[recipe.hybrid.host].vocab_size
    return min(config.vocab_size for config in configs)


def _check_names(recipe: HybridRecipe) -> None:
    names = component_names(recipe)
    if len(set(names)) < len(names):
        raise ValueError(f"Two components have the same name: {names}. Set `name` for one of them.")
    ids = [variant.id for variant in recipe.compare.variants]
    taken = {"hybrid", "uniform", "random", "no-cross-talk"} & set(ids)
    if taken or len(set(ids)) < len(ids):
        raise ValueError(f"compare.variants: the ids {ids} must differ and not be {sorted(taken)}.")
