"""One training of the comparison: build the row's model, train it, read it back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from manticore.config import dump_yaml, to_plain
from manticore.config.load import from_plain
from manticore.config.recipes import HybridConfig, HybridRecipe, OptimizerConfig
from manticore.config.strict_yaml import parse_yaml
from manticore.evaluation.language import causal_loss, losses_by_kind
from manticore.hybrids.assembly import (
    build_hybrid,
    fit_start,
    load_components,
    load_tokenizers,
    train_projectors,
)
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from manticore.hybrids.rows import training_flops
from manticore.hybrids.vocabulary import align_vocabulary
from manticore.models.fast_paths import bind_fast_paths
from manticore.models.recomputing import recompute_activations
from manticore.runs import RunFolder
from manticore.seeds import derive_seed
from manticore.text.prepared import PreparedData, prepare_data
from manticore.training import NonFiniteLossError, TrainConfig, load_weights, train
from manticore.training.rates import diverged


def train_row(settings: dict[str, Any]) -> dict[str, Any]:
    """Train one row; a trial for the pool. A loss that stops being a number is a result, too."""
    try:
        return _train_row(settings)
    except NonFiniteLossError as error:
        row = settings["row"]
        return {"id": row["id"], "lr": row["lr"], "loss": {"mean": math.nan}, **diverged(error)}


def _train_row(settings: dict[str, Any]) -> dict[str, Any]:
    """The training itself.

    Args:
        settings: recipe and row as plain values, `base` (folder of the recipe) and `run`.

    Returns:
        Validation losses, tokens, seconds, and the folder of the weights within the run.
    """
    recipe = from_plain(HybridRecipe, settings["recipe"], source="the trial's recipe")
    row, run, base = settings["row"], Path(settings["run"]), Path(settings["base"])
    name = row_folder(row)
    folder = RunFolder(run / name)
    folder.path.mkdir(parents=True, exist_ok=True)
    data = prepared(recipe, base)
    model = row_model(recipe, row, base, run)
    if recipe.finetune.gradient_checkpointing:
        recompute_activations(model)
    result = train(
        model,
        data.batches("train", recipe.finetune.batch_size, batch_seed(recipe)).batch_at,
        train_config(recipe.finetune, steps=row["steps"], lr=row["lr"]),
        parameters=[p for p in model.parameters() if p.requires_grad],
        loss_fn=causal_loss,
        folder=folder.path / "train",
        name=row["id"],
        log=lambda line: folder.log({**line, "stage": "finetune"}),
        on_start=lambda done: folder.truncate_metrics("finetune", done),
        progress=False,
        seed=batch_seed(recipe),
        final_only=True,
    )
    validation = losses_by_kind(model, data.packs["validation"])
    done = {"id": row["id"], "lr": row["lr"], "row": row, "folder": name, **validation}
    return {**done, "tokens": result.tokens, "seconds": result.seconds}


def trained_row(
    recipe: HybridRecipe, result: dict[str, Any], base: Path, run: Path
) -> PreTrainedModel:
    """The finished model of a row, weights read from its folder."""
    model = row_model(recipe, result["row"], base, run)
    load_weights(run / result["folder"] / "train" / "final", {"model": model})
    return model.eval()


def row_model(recipe: HybridRecipe, row: dict[str, Any], base: Path, run: Path) -> PreTrainedModel:
    """A row's model before its training."""
    if row["component"] is not None:
        return component_alone(recipe, row["component"], base)
    if row["overrides"]:
        plain = to_plain(recipe)
        source = f"variant {row['id']}"
        recipe = from_plain(HybridRecipe, plain, source=source, overrides=row["overrides"])
        # A folder for each rate: trials of one variant may run side by side.
        hybrid, _ = assembled(recipe, base, run / row_folder(row))
    else:
        hybrid = load_start(run / "start", row["loyalty"])
    if row["mixture"] is not None:
        set_mixture(hybrid, row["mixture"])
    hybrid.freeze_mixture()
    return hybrid


def component_alone(recipe: HybridRecipe, index: int, base: Path) -> PreTrainedModel:
    """One component, reading the hybrid's token ids.

    A component with a tokenizer of its own gets the tables that it has in the hybrid, so that
    every row of the table predicts the same tokens.
    """
    models = load_components(recipe, base)
    model = models[index]
    _, tokenizers = load_tokenizers(recipe, base)
    if tokenizers is not None:
        tables, report = align_vocabulary(models, tokenizers, recipe.hybrid.host)
        embed, head = tables[index]
        model.set_input_embeddings(embed)
        model.set_output_embeddings(head)
        model.config.vocab_size = report.vocab_size
    bind_fast_paths(model.base_model)
    return model


def row_folder(row: dict[str, Any]) -> str:
    """Where a row at one learning rate is trained, within the run."""
    return f"rows/{row['id']}-lr{row['lr']:g}"


def assembled(
    recipe: HybridRecipe,
    base: Path,
    folder: Path,
    log: Callable[[dict[str, Any]], None] | None = None,
    on_start: Callable[[int], None] | None = None,
    progress: bool = False,
) -> tuple[ManticoreForCausalLM, dict[str, Any]]:
    """The recipe's hybrid after phase A, and the record of that phase."""
    tokenizer, others = load_tokenizers(recipe, base)
    data = prepared(recipe, base)
    hybrid = build_hybrid(recipe, base, others, tokenizer)
    fits = fit_start(hybrid, recipe.projectors, data, recipe.seed)
    trained_tokens = train_projectors(
        hybrid,
        recipe.projectors,
        data,
        batch_size=recipe.finetune.batch_size,
        seed=derive_seed(recipe.seed, "train projectors"),
        folder=folder / "projector-training" if recipe.projectors.steps else None,
        checkpoint_every=recipe.finetune.checkpoint_every,
        log=log,
        on_start=on_start,
        progress=progress,
    )
    fit_tokens = recipe.projectors.tokens if fits else 0
    per_token = training_flops(hybrid.config, recipe.data.seq_len)
    return hybrid, {
        "fit": [dataclasses.asdict(fit) for fit in fits],
        "vocabulary": hybrid.vocabulary_report.lines(),
        "tokens": fit_tokens + trained_tokens,
        "flops": per_token * (fit_tokens / 3 + trained_tokens),
        "fast_paths": hybrid.model.fast_paths,
    }


def load_start(path: Path, loyalty: str | None = None) -> ManticoreForCausalLM:
    """The hybrid of phase A, with another loyalty if one is given."""
    config = ManticoreForCausalLM.config_class.from_pretrained(path)
    if loyalty is not None:
        config.loyalty = [loyalty] * (config.num_blocks + 1)
    return ManticoreForCausalLM.from_pretrained(path, config=config, dtype=torch.float32)


def set_mixture(hybrid: ManticoreForCausalLM, values: dict[str, Any]) -> None:
    """Set mixture, embedding and head rows from plain lists."""
    embed, head = (
        None if values.get(key) is None else torch.tensor(values[key]) for key in ("embed", "head")
    )
    hybrid.set_mixture(torch.tensor(values["mixture"]), embed=embed, head=head)


def train_config(section: OptimizerConfig, **changes: Any) -> TrainConfig:
    """The training room's settings for a recipe's section."""
    names = (
        "steps lr weight_decay beta2 clip warmup_steps schedule checkpoint_every precision "
        "grad_accumulation"
    )
    fields = {name: getattr(section, name) for name in names.split()}
    return TrainConfig(**{**fields, **changes})


def batch_seed(recipe: HybridRecipe) -> int:
    """Seed of the fine-tuning batches, the same for every row."""
    return derive_seed(recipe.seed, "finetune batches")


def prepared(recipe: HybridRecipe, base: Path) -> PreparedData:
    """The recipe's data, prepared once in each process."""
    data_only = HybridRecipe(
        name="data",
        components=recipe.components,
        data=recipe.data,
        hybrid=HybridConfig(host=recipe.hybrid.host),
        finetune=OptimizerConfig(steps=1),
    )
    return _prepared_from(dump_yaml(data_only), str(base))


@lru_cache(maxsize=2)
def _prepared_from(recipe_text: str, base: str) -> PreparedData:
    recipe = from_plain(HybridRecipe, parse_yaml(recipe_text, "the recipe"), source="the recipe")
    tokenizer, _ = load_tokenizers(recipe, Path(base))
    return prepare_data(recipe.data, tokenizer, Path(base))
