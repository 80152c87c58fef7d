"""The stages of an adapter recipe whose memory `manticore plan` tells, built without weights."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from manticore.config.adapter_recipe import AdaptRecipe, MethodConfig
from manticore.evaluation.memory_plan import (
    Memory,
    Stage,
    evaluation_work,
    forward_memory,
    generation_memory,
    text_batch,
    training_memory,
)
from manticore.evaluation.memory_shadow import Shadow
from manticore.models.fast_paths import bind_fast_paths
from manticore.models.recomputing import recompute_activations
from manticore.tuning.batches import collate
from manticore.tuning.encoding import Encoded
from manticore.tuning.evaluate import tuning_loss
from manticore.tuning.methods import FULL
from manticore.tuning.models import shell_model
from manticore.tuning.unfused import without_fused_kernels


def tuning_stages(recipe: AdaptRecipe, base: Path) -> list[Stage]:
    """Training by every method; the evaluations and answers of the first, as they are much alike.

    Batches are planned with rows as long as `data.seq_len` allows, one of them a token shorter, so
    that there is padding.
    """
    if recipe.model.quantization != "none":
        raise ValueError(
            f"model.quantization={recipe.model.quantization}: bitsandbytes' layers cannot be "
            "planned without their weights. Plan with model.quantization=none model.dtype=bf16 "
            "and take off the difference of the weights."
        )
    shape, first = (recipe.model, recipe.data), recipe.methods[0]
    stages = [
        Stage(
            name=f"training by {m.id}",
            measure=lambda m=m: _training(recipe, m, base),  # type: ignore[misc]
            depends=repr((*shape, recipe.train, m)),
        )
        for m in recipe.methods
    ]
    depends = repr((*shape, recipe.evaluate, recipe.train.validate_every, first))
    works = {"evaluation": _evaluation}
    if "exact-match" in recipe.evaluate.metrics:
        works["answers"] = _answers
    return stages + [
        Stage(name=name, measure=lambda w=work: w(recipe, first, base), depends=depends)  # type: ignore[misc]
        for name, work in works.items()
    ]


def _training(recipe: AdaptRecipe, method: MethodConfig, base: Path) -> Memory:
    shadow, settings = Shadow(), recipe.train
    model: Any = shadow.build(lambda: _model(recipe, method, base))
    if settings.gradient_checkpointing:
        recompute_activations(model)
    with without_fused_kernels(model) if method.method != FULL else nullcontext():
        return training_memory(
            shadow,
            model,
            lambda: _batch(recipe, settings.batch_size),
            tuning_loss,
            pieces=settings.grad_accumulation,
            precision=settings.precision,
        )


def _evaluation(recipe: AdaptRecipe, method: MethodConfig, base: Path) -> Memory:
    shadow = Shadow()
    model = shadow.build(lambda: _model(recipe, method, base))
    rows, work = recipe.evaluate.batch_size, evaluation_work(recipe.data.seq_len)
    if recipe.data.format == "text":
        work = evaluation_work(recipe.data.seq_len, rows)
    else:

        def work(model: nn.Module) -> Tensor:
            return tuning_loss(model, _batch(recipe, rows))

    return forward_memory(shadow, model, work, is_training=recipe.train.validate_every > 0)


def _answers(recipe: AdaptRecipe, method: MethodConfig, base: Path) -> Memory:
    shadow, config = Shadow(), recipe.evaluate
    return generation_memory(
        shadow,
        shadow.build(lambda: _model(recipe, method, base)),
        batch_size=config.batch_size,
        prompt_tokens=recipe.data.seq_len,
        new_tokens=config.max_new_tokens,
    )


def _model(recipe: AdaptRecipe, method: MethodConfig, base: Path) -> Any:
    """The method's model: frozen weights of the recipe's type, trained ones in float32."""
    model = shell_model(recipe, method, base)
    frozen = torch.float32 if recipe.model.dtype == "fp32" else torch.bfloat16
    for parameter in model.parameters():
        is_frozen = method.method == FULL or not parameter.requires_grad
        parameter.data = parameter.data.to(frozen if is_frozen else torch.float32)
    bind_fast_paths(model)
    return model


def _batch(recipe: AdaptRecipe, rows: int) -> dict[str, Any]:
    length = recipe.data.seq_len
    if recipe.data.format == "text":
        return text_batch(rows, length)
    return collate([example_row(recipe, max(1, length - (row > 0))) for row in range(rows)], pad=0)


def example_row(recipe: AdaptRecipe, length: int) -> Encoded:
    """An example of so many tokens: a class to choose, or an answer to say."""
    is_classifier = recipe.data.format == "classification"
    ids = np.zeros(length, np.int32)
    labels, prompt = (ids[:1], ids[:0]) if is_classifier else (ids, ids[:1])
    return Encoded(ids=ids, labels=labels, prompt=prompt, scored_bytes=length)
