"""One training: a method at one learning rate with one seed, resumable by itself."""

from __future__ import annotations

import dataclasses
import math
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from manticore.config import dump_yaml
from manticore.config.adapter_recipe import AdaptRecipe, MethodConfig
from manticore.config.load import from_plain
from manticore.config.strict_yaml import parse_yaml
from manticore.models.recomputing import recompute_activations
from manticore.runs import RunFolder
from manticore.seeds import derive_seed
from manticore.training import (
    NonFiniteLossError,
    TrainConfig,
    TrainResult,
    load_weights,
    train,
)
from manticore.training.rates import diverged
from manticore.tuning.cost import step_cost
from manticore.tuning.data import TuningData, prepare_tuning_data
from manticore.tuning.evaluate import measure, tuning_loss
from manticore.tuning.methods import FULL, trainable_parameters
from manticore.tuning.models import load_model_tokenizer, tuned_model
from manticore.tuning.unfused import without_fused_kernels


def train_method(settings: dict[str, Any]) -> dict[str, Any]:
    """Train one method; a trial for the pool. A loss that stops being a number is a result, too."""
    try:
        return _train_method(settings)
    except NonFiniteLossError as error:
        metrics = ("loss", *settings["recipe"]["evaluate"]["metrics"])
        return {
            "id": settings["method"]["id"],
            "lr": settings["lr"],
            "seed": int(settings["seed"]),
            "validation": dict.fromkeys(metrics, math.nan),
            **diverged(error),
        }


def _train_method(settings: dict[str, Any]) -> dict[str, Any]:
    """The training itself.

    Args:
        settings: `recipe` and `method` as plain values, `lr`, `seed`, `steps` (None: the
            recipe's), `base` (folder of the recipe) and `run`.

    Returns:
        Validation measures, parameters, cost, and the folder of the weights within the run.
    """
    recipe = from_plain(AdaptRecipe, settings["recipe"], source="the trial's recipe")
    method = from_plain(MethodConfig, settings["method"], source="the trial's method")
    base, seed = Path(settings["base"]), int(settings["seed"])
    tokenizer, data = prepared(recipe, base)
    model = tuned_model(recipe, method, base, data, seed)
    if recipe.train.gradient_checkpointing:
        recompute_activations(model)
    name = row_folder(method.id, settings["lr"], seed, settings.get("steps"))
    batches = data.batches(recipe.train.batch_size, derive_seed(seed, recipe.name, "batches"))
    parameters = trainable_parameters(model)
    with without_fused_kernels(model) if method.method != FULL else nullcontext():
        cost = step_cost(model, batches.batch_at(0), recipe.train.grad_accumulation)
        result = _fit(model, recipe, settings, batches, Path(settings["run"]) / name)
    is_by_answers = recipe.rates.by == "exact-match"
    found = measure(model, data, "validation", recipe.evaluate, tokenizer, generate=is_by_answers)
    return {
        "id": method.id,
        "lr": settings["lr"],
        "seed": seed,
        "folder": name,
        "validation": found,
        "train_loss": result.final_loss,
        "parameters": parameters,
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": result.seconds,
        **cost,
    }


def _fit(
    model: nn.Module, recipe: AdaptRecipe, settings: dict[str, Any], batches: Any, path: Path
) -> TrainResult:
    """Train what wants a gradient, with checkpoints and metrics below `path`."""
    tokenizer, data = prepared(recipe, Path(settings["base"]))
    folder, row = RunFolder(path), settings["method"]["id"]
    folder.path.mkdir(parents=True, exist_ok=True)
    steps = settings.get("steps") or steps_of(recipe, data)
    return train(
        model,
        batches.batch_at,
        train_config(recipe, steps, settings["lr"]),
        parameters=[p for p in model.parameters() if p.requires_grad],
        loss_fn=tuning_loss,
        folder=folder.path / "train",
        name=row,
        log=lambda line: folder.log({**line, "stage": "adapt", "row": row}),
        on_start=lambda done: folder.truncate_metrics("adapt", done),
        eval_fn=_validation(recipe, data, tokenizer) if recipe.train.validate_every else None,
        eval_every=recipe.train.validate_every,
        progress=False,
        seed=derive_seed(int(settings["seed"]), recipe.name, "training"),
        final_only=True,
    )


def trained_model(recipe: AdaptRecipe, result: dict[str, Any], base: Path, run: Path) -> nn.Module:
    """The finished model of a trial, weights read from its folder."""
    method = next(m for m in recipe.methods if m.id == result["id"])
    _, data = prepared(recipe, base)
    model = tuned_model(recipe, method, base, data, int(result["seed"]))
    load_weights(run / result["folder"] / "train" / "final", {"model": model})
    return model.eval()


def steps_of(recipe: AdaptRecipe, data: TuningData) -> int:
    """Optimizer steps: given, or from epochs."""
    if recipe.train.steps:
        return recipe.train.steps
    return max(1, math.ceil(recipe.train.epochs * data.n_train / recipe.train.batch_size))


def train_config(recipe: AdaptRecipe, steps: int, lr: float) -> TrainConfig:
    """The training room's settings for a recipe."""
    names = "weight_decay beta2 clip warmup_steps schedule checkpoint_every precision"
    fields = {name: getattr(recipe.train, name) for name in names.split()}
    return TrainConfig(
        **fields, steps=steps, lr=lr, grad_accumulation=recipe.train.grad_accumulation
    )


def row_folder(method_id: str, lr: float, seed: int, steps: int | None = None) -> str:
    """Where a training lies within the run."""
    return f"rows/{method_id}-lr{lr:g}-seed{seed}" + (f"-steps{steps}" if steps else "")


def trial_recipe(recipe: AdaptRecipe) -> AdaptRecipe:
    """The part of a recipe that decides a training: which other rows there are does not."""
    one = MethodConfig(id="one", label="one", method=FULL)
    return dataclasses.replace(recipe, methods=(one,), goals=(), search=None, seed=0)


def prepared(recipe: AdaptRecipe, base: Path) -> tuple[Any, TuningData]:
    """Tokenizer and data of a recipe, made once in each process."""
    return _prepared_from(dump_yaml(trial_recipe(recipe)), str(base))


@lru_cache(maxsize=2)
def _prepared_from(text: str, base: str) -> tuple[Any, TuningData]:
    recipe = from_plain(AdaptRecipe, parse_yaml(text, "the recipe"), source="the recipe")
    tokenizer = load_model_tokenizer(recipe.model, Path(base))
    return tokenizer, prepare_tuning_data(recipe, tokenizer, Path(base))


def _validation(recipe: AdaptRecipe, data: TuningData, tokenizer: Any) -> Any:
    def validate(model: nn.Module) -> dict[str, float]:
        return measure(model, data, "validation", recipe.evaluate, tokenizer, generate=False)

    return validate
