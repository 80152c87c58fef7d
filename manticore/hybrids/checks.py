"""Everything about a hybrid recipe that can be checked before any compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manticore.config import to_plain
from manticore.config.errors import did_you_mean
from manticore.config.ids import check_ids
from manticore.config.load import from_plain
from manticore.config.recipes import HybridRecipe
from manticore.hybrids.assembly import component_names, load_tokenizers, plain_partition
from manticore.hybrids.configuration_manticore import ManticoreConfig
from manticore.hybrids.mixture import checked_rows
from manticore.hybrids.trials import prepared
from manticore.hybrids.vocabulary import agree
from manticore.models.component_lengths import check_length
from manticore.models.loading import check_loadable
from manticore.text.corpora import check_there
from manticore.text.prepared import resolve_path
from manticore.text.tokenizers import tokenizer_beside

TAKEN = ("hybrid", "uniform", "random", "no-cross-talk", "component-*", "ensemble-*")
"""Ids of the rows that every comparison may have."""


def check_recipe(recipe: HybridRecipe, base: Path) -> None:
    """Raise a ValueError for what cannot work: components, partition, mixture, lengths, rows."""
    _check_hybrid(recipe, base)
    _check_tokenizers(recipe, base)
    _check_splits(recipe)
    for text in recipe.data.sources:
        check_there(resolve_path(text.path, base))
    _check_names(recipe)
    for variant in recipe.compare.variants:
        source = f"variant {variant.id}"
        try:
            _check_variant(variant.overrides)
            plain = to_plain(recipe)
            changed = from_plain(HybridRecipe, plain, source=source, overrides=variant.overrides)
            _check_hybrid(changed, base)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error


def check_data(recipe: HybridRecipe, base: Path) -> None:
    """Read, split and pack all text; raise a ValueError for what cannot be trained on.

    What was read is kept in memory for the stages that follow.
    """
    prepared(recipe, base)


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


def _check_hybrid(recipe: HybridRecipe, base: Path) -> None:
    count = len(recipe.components)
    if not count:
        raise ValueError("components is empty. Name at least one pretrained model.")
    if not 0 <= recipe.hybrid.host < count:
        raise ValueError(
            f"hybrid.host={recipe.hybrid.host} names none of the {count} components. "
            f"Choose from 0 to {count - 1}."
        )
    config = recipe_config(recipe, base)
    if recipe.hybrid.mixture is not None:
        shape = (config.num_blocks, config.num_components)
        checked_rows(recipe.hybrid.mixture, shape, "hybrid.mixture")
    for k, ranges in enumerate(recipe.hybrid.partition or ()):
        empty = [list(block) for block in ranges if block[0] == block[1]]
        if empty:
            raise ValueError(
                f"hybrid.partition of component {k} has a block without a layer: {empty[0]}. "
                "Every block needs at least one; use fewer blocks, or weight 0 in the mixture."
            )
    for part in config.components:
        check_length(part, recipe.data.seq_len)


def _vocabulary(recipe: HybridRecipe, configs: list[Any]) -> int:
    if any(component.tokenizer for component in recipe.components):
        return configs[recipe.hybrid.host].vocab_size
    return min(config.vocab_size for config in configs)


def _check_tokenizers(recipe: HybridRecipe, base: Path) -> None:
    """Token ids must mean the same to every component, and every table must have room for them."""
    host, others = load_tokenizers(recipe, base)
    used = others or [host] * len(recipe.components)
    for k, component in enumerate(recipe.components):
        own = tokenizer_beside(resolve_path(component.path, base))
        if component.tokenizer is None and own is not None and not agree(own, used[k]):
            raise ValueError(_foreign_tokenizer(recipe, k, len(own), len(used[k])))
        rows = check_loadable(resolve_path(component.path, base)).vocab_size
        if rows < len(used[k]):
            raise ValueError(
                f"components.{k} ({component_names(recipe)[k]}) has an embedding table of {rows} "
                f"rows, its tokenizer {len(used[k])} tokens. Give the tokenizer that it was "
                f"trained with as components.{k}.tokenizer."
            )


def _foreign_tokenizer(recipe: HybridRecipe, k: int, own: int, used: int) -> str:
    component, host = recipe.components[k], recipe.hybrid.host
    what = (
        f"components.{k} ({component_names(recipe)[k]}) carries a tokenizer of {own} tokens that "
        f"differs from the one it would be used with ({used} tokens"
    )
    if k == host:
        return (
            f"{what}: data.tokenizer). Leave data.tokenizer out, or make it the tokenizer of the "
            f"host, or choose another hybrid.host."
        )
    return (
        f"{what}: that of the host, components.{host}). Set components.{k}.tokenizer: "
        f"{component.path}, so that its embedding rows are transplanted."
    )


def _check_splits(recipe: HybridRecipe) -> None:
    needed = ["train", "validation", "test"]
    if recipe.search.method != "none":
        needed.append("architecture")
    empty = [name for name in needed if not getattr(recipe.data.splits, name) > 0]
    if empty:
        raise ValueError(
            f"data.splits gives nothing to {', '.join(empty)}. Give each a share above 0; only "
            "pretrain, and architecture with search.method=none, may be empty."
        )


def _check_names(recipe: HybridRecipe) -> None:
    names = component_names(recipe)
    if len(set(names)) < len(names):
        raise ValueError(f"Two components have the same name: {names}. Set `name` for one of them.")
    ids = [variant.id for variant in recipe.compare.variants]
    check_ids("compare.variants", ids, taken=TAKEN)
    parts = [f"component-{k}" for k in range(len(names))]
    # A row that is switched off may keep its rate.
    rows = ["hybrid", "no-cross-talk", "uniform", "random", *ids]
    rows += [f"{part}{budget}" for part in parts for budget in ("", "-equal-flops")]
    for row in recipe.compare.row_lr:
        if row not in rows:
            raise ValueError(
                f"compare.row_lr names {row!r}, which is no row of this recipe."
                f"{did_you_mean(row, rows)} Rows: {', '.join(rows)}."
            )


def _check_variant(overrides: Sequence[str]) -> None:
    """A variant is built anew and then trained as every row is, so that much it may change."""
    for override in overrides:
        if not override.startswith(("hybrid.", "projectors.", "components.")):
            raise ValueError(
                f"{override!r} would change nothing of how it is built. A variant may change keys "
                "of hybrid, projectors and components; the rest is the same for all rows."
            )
