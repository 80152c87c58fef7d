"""Which stages a recipe of each kind has, for `manticore plan`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manticore.cli.adapt_run import check_methods
from manticore.cli.plan_ladders import with_adapters, with_student_adapters
from manticore.cli.pretraining import build_model
from manticore.config.adapter_recipe import AdaptRecipe
from manticore.config.pretrain_recipe import PretrainRecipe
from manticore.config.recipes import HybridRecipe
from manticore.config.transfer_recipe import TransferRecipe
from manticore.conversion.memory_stages import check_rows, transfer_stages
from manticore.evaluation.language import causal_loss
from manticore.evaluation.memory_plan import (
    Memory,
    Stage,
    evaluation_work,
    forward_memory,
    text_batch,
    training_memory,
)
from manticore.evaluation.memory_shadow import Shadow
from manticore.hybrids.checks import check_recipe
from manticore.hybrids.memory_stages import hybrid_stages
from manticore.models.fast_paths import bind_fast_paths
from manticore.models.recomputing import recompute_activations
from manticore.text.prepared import resolve_path
from manticore.text.tokenizers import load_tokenizer
from manticore.tuning.memory_stages import tuning_stages


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is particular to a kind of recipe."""

    recipe: type
    check: Callable[[Any, Path], None]
    """Raises a ValueError for what cannot work."""
    stages: Callable[[Any, Path, bool], list[Stage]]
    """From recipe, its folder and whether to train adapters instead of all weights."""


def pretrain_stages(recipe: PretrainRecipe, base: Path, adapters: bool = False) -> list[Stage]:
    """Training from scratch, and the validations in the midst of it."""
    tokenizer = load_tokenizer(resolve_path(recipe.data.tokenizer or "", base))
    settings, seq_len = recipe.train, recipe.data.seq_len

    def make() -> Any:
        model = build_model(recipe, len(tokenizer), tokenizer.eos_token_id)
        bind_fast_paths(model.base_model)
        return model

    def training() -> Memory:
        shadow = Shadow()
        model = shadow.build(make)
        if settings.gradient_checkpointing:
            recompute_activations(model)
        return training_memory(
            shadow,
            model,
            lambda: text_batch(settings.batch_size, seq_len),
            causal_loss,
            pieces=settings.grad_accumulation,
            precision=settings.precision,
        )

    def validation() -> Memory:
        shadow = Shadow()
        work = evaluation_work(seq_len)
        return forward_memory(shadow, shadow.build(make), work, is_training=True)

    return [
        Stage(name="training", measure=training),
        Stage(name="validation", measure=validation, depends=repr((recipe.model, recipe.data))),
    ]


def _adapt_stages(recipe: AdaptRecipe, base: Path, adapters: bool) -> list[Stage]:
    return tuning_stages(with_adapters(recipe) if adapters else recipe, base)


def _transfer_stages(recipe: TransferRecipe, base: Path, adapters: bool) -> list[Stage]:
    return transfer_stages(with_student_adapters(recipe) if adapters else recipe, base)


KINDS = {
    "pretrain": Kind(
        recipe=PretrainRecipe, check=lambda recipe, base: None, stages=pretrain_stages
    ),
    "hybrid": Kind(recipe=HybridRecipe, check=check_recipe, stages=hybrid_stages),
    "adapt": Kind(
        recipe=AdaptRecipe, check=lambda recipe, base: check_methods(recipe), stages=_adapt_stages
    ),
    "transfer": Kind(recipe=TransferRecipe, check=check_rows, stages=_transfer_stages),
}
