"""The pretraining of a small model of the zoo: the order of its phases."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from manticore.cli.zoo_card import zoo_card
from manticore.config import dump_yaml
from manticore.config.errors import did_you_mean
from manticore.config.pretrain_recipe import PretrainRecipe
from manticore.evaluation.language import causal_loss, losses_by_kind
from manticore.hybrids.trials import train_config
from manticore.models.fast_paths import bind_fast_paths
from manticore.models.recomputing import recompute_activations
from manticore.models.supported import check_supported
from manticore.runs import RunFolder, atomic_folder, write_text
from manticore.seeds import derive_seed
from manticore.text.corpora import check_there
from manticore.text.ngram import NGramModel
from manticore.text.prepared import PreparedData, prepare_data, resolve_path
from manticore.text.tokenizers import load_tokenizer
from manticore.training import train


def pretrain(recipe: PretrainRecipe, folder: RunFolder, base: Path, progress: bool) -> dict:
    """Train a small model from scratch and write it as a Hugging Face folder with a card.

    Args:
        recipe: what to train on what.
        folder: the opened run folder; the model goes to its `model/`.
        base: folder of the recipe, for relative paths.
    """
    tokenizer = load_tokenizer(resolve_path(recipe.data.tokenizer or "", base))
    data = prepare_data(recipe.data, tokenizer, base)
    model = build_model(recipe, len(tokenizer), tokenizer.eos_token_id)
    bind_fast_paths(model.base_model)
    if recipe.train.gradient_checkpointing:
        recompute_activations(model)
    result = _train(recipe, model, data, folder, progress)
    record = {
        "name": recipe.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": result.tokens,
        "seconds": result.seconds,
        "data": data.record,
        "test": losses_by_kind(model, data.packs["test"]),
        "validation": losses_by_kind(model, data.packs["validation"]),
        "ngram": _ngram_losses(recipe, data),
    }
    check_honest(recipe, record)
    _write_model(recipe, model, tokenizer, record, folder)
    folder.write_result(record)
    return record


def describe_pretraining(recipe: PretrainRecipe, folder: RunFolder, base: Path) -> str:
    """What a dry run prints: the recipe, parameters, tokens and the files to be written."""
    tokenizer = load_tokenizer(resolve_path(recipe.data.tokenizer or "", base))
    for source in recipe.data.sources:
        check_there(resolve_path(source.path, base))
    with torch.device("meta"):
        model = build_model(recipe, len(tokenizer), tokenizer.eos_token_id)
    parameters = sum(p.numel() for p in model.parameters())
    tokens = recipe.train.steps * recipe.train.batch_size * recipe.data.seq_len
    lines = [
        dump_yaml(recipe).rstrip(),
        f"parameters: {parameters:,}",
        f"tokens: {tokens:,} in {recipe.train.steps:,} steps",
        f"training FLOPs: about {6 * parameters * tokens:.2e} (6 x parameters x tokens)",
        f"would write: {folder.path}/model, result.json, metrics.jsonl, train/",
    ]
    return "\n".join(lines)


def build_model(recipe: PretrainRecipe, vocab_size: int, eos: int) -> PreTrainedModel:
    """A randomly initialised model from the recipe's Hugging Face fields."""
    fields = dict(recipe.model)
    model_type = str(fields.pop("model_type", ""))
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"model.model_type is {model_type!r}: name a family of transformers.")
    seed = derive_seed(recipe.seed, recipe.name, "initial weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            config = _model_config(CONFIG_MAPPING[model_type], fields, vocab_size, eos)
            check_supported(config)
            model = AutoModelForCausalLM.from_config(config)
        except (RuntimeError, TypeError, ZeroDivisionError, StrictDataclassError) as error:
            why = " ".join(str(error).split())
            raise ValueError(f"The section `model` makes no {model_type}: {why}") from error
    model.generation_config.pad_token_id = eos
    return model


def _model_config(cls: Any, fields: dict[str, Any], vocab_size: int, eos: int) -> Any:
    """The config of a family with the recipe's fields, all of which it has to know."""
    known = cls()
    for key in fields:
        if not hasattr(known, key):
            near = did_you_mean(key, list(known.to_dict()))
            raise ValueError(f"model.{key} is nothing that {cls.model_type} has.{near}")
    rows = int(fields.pop("vocab_size", None) or vocab_size)
    if rows < vocab_size:
        raise ValueError(
            f"model.vocab_size={rows} is too small for the tokenizer's {vocab_size} tokens. Leave "
            "it out, or give as many or more."
        )
    # No padding token here: some families never train its row of the table, and it would be the
    # end of text.
    special = {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": None}
    return cls(vocab_size=rows, **{**special, **fields})


def _train(
    recipe: PretrainRecipe,
    model: PreTrainedModel,
    data: PreparedData,
    folder: RunFolder,
    progress: bool,
) -> Any:
    seed = derive_seed(recipe.seed, recipe.name, "batches")
    batches = data.batches("pretrain", recipe.train.batch_size, seed)
    return train(
        model,
        batches.batch_at,
        train_config(recipe.train),
        folder=folder.path / "train",
        name="pretrain",
        loss_fn=causal_loss,
        log=logger(folder, "pretrain", recipe.name),
        on_start=lambda done: folder.truncate_metrics("pretrain", done),
        progress=progress,
        eval_fn=lambda m: losses_by_kind(m, data.packs["validation"])["loss"]["mean"],
        eval_every=recipe.validate_every,
        seed=seed,
        final_only=True,
    )


def logger(folder: RunFolder, stage: str, row: str) -> Callable[[dict[str, Any]], None]:
    """A log function that names stage and row in every line."""
    return lambda record: folder.log({**record, "stage": stage, "row": row})


def _ngram_losses(recipe: PretrainRecipe, data: PreparedData) -> dict[str, float]:
    if not recipe.ngram_order:
        return {}
    found = {}
    for kind, pack in data.packs["pretrain"].items():
        vocab_size = int(recipe.model.get("vocab_size") or pack.rows.max() + 1)
        model = NGramModel(recipe.ngram_order).fit(pack.rows, vocab_size)
        test = data.packs["test"][kind]
        found[kind] = model.nats_per_token(test.rows)
    return found


def check_honest(recipe: PretrainRecipe, record: dict) -> None:
    """The model must beat the n-gram model of the recipe on every kind it was trained on."""
    for kind, ngram in record["ngram"].items():
        loss = record["test"]["loss"][kind]
        if not math.isfinite(loss) or loss >= ngram:
            raise ValueError(
                f"{recipe.name} reaches {loss:.3f} nats per token of {kind}, a "
                f"{recipe.ngram_order}-gram model {ngram:.3f}. Train longer, or with another "
                "learning rate; ngram_order=0 skips this check."
            )


def _write_model(
    recipe: PretrainRecipe, model: PreTrainedModel, tokenizer: Any, record: dict, folder: RunFolder
) -> None:
    with atomic_folder(folder.path / "model") as target:
        model.to(torch.float16).save_pretrained(target)
        tokenizer.save_pretrained(target)
        write_text(target / "README.md", zoo_card(recipe, record))
