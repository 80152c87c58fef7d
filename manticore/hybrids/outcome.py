"""Phase D: test every row once, ensembles included, and write down what it all cost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from manticore.config import to_plain
from manticore.config.recipes import HybridRecipe
from manticore.evaluation.language import ensemble_losses, losses_by_kind
from manticore.hybrids.assembly import component_names
from manticore.hybrids.card import write_card
from manticore.hybrids.costs import cache_bytes_of, cost_of
from manticore.hybrids.experiment import Experiment
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from manticore.hybrids.trials import trained_row
from manticore.models.costs import Cost, cache_bytes, component_cost
from manticore.runs import atomic_folder
from manticore.seeds import derive_seed

LENGTHS = (1024, 32768)


def test_rows(experiment: Experiment) -> list[dict[str, Any]]:
    """Test losses and costs of all rows. The test split is read here and nowhere else."""
    folder = experiment.folder
    if folder.is_done("test"):
        return folder.record("test")["rows"]
    chosen = experiment.finetune()
    rows, tuned = [], {}
    for row_id, result in chosen.items():
        model = trained_row(experiment.recipe, result, experiment.base, folder.path)
        rows.append(_trained_record(experiment, result, model))
        component = result["row"]["component"]
        if component is not None and row_id == f"component-{component}":
            tuned[component] = model
        if row_id == "hybrid":
            _save_hybrid(experiment, model)
    if experiment.recipe.compare.ensembles and len(tuned) == len(experiment.recipe.components):
        rows += _ensembles(experiment, [tuned[k] for k in sorted(tuned)], rows)
    folder.finish("test", {"rows": rows})
    return rows


def _trained_record(
    experiment: Experiment, result: dict[str, Any], model: PreTrainedModel
) -> dict[str, Any]:
    recipe, row = experiment.recipe, result["row"]
    tested = losses_by_kind(model, experiment.data.packs["test"])
    costs = model_costs(model, recipe.data.seq_len)
    per_token = costs.pop("training_flops_per_token")
    tried = result["tried"]
    note = f"lr chosen on validation among {', '.join(tried)}" if len(tried) > 1 else ""
    return {
        "id": row["id"],
        "label": row["label"],
        "group": row["group"],
        "seeds": 1,
        "lr": row["lr"],
        "tokens": result["tokens"],
        "train_flops": per_token * result["tokens"],
        "seconds": result["seconds"],
        **costs,
        "loss": tested["loss"],
        "loss_sd": None,
        "bits_per_byte": tested["bits_per_byte"],
        "validation": result["loss"],
        "tried": tried,
        "note": note,
    }


def model_costs(model: PreTrainedModel, seq_len: int) -> dict[str, Any]:
    """Parameters, FLOPs per token and cache bytes of a hybrid or of a component alone."""
    if isinstance(model, ManticoreForCausalLM):
        cost: Any = cost_of(model, seq_len)
        active = cost.active_parameters
        held = {length: cache_bytes_of(model, length).total for length in LENGTHS}
    else:
        cost = component_cost(model.config, seq_len)
        active = cost.parameters
        held = {length: cache_bytes(model.config, length).total for length in LENGTHS}
    return {
        "parameters": cost.parameters,
        "active_parameters": active,
        "training_flops_per_token": cost.training.total,
        "inference_flops_per_token": cost.forward.total,
        "state_bytes": {str(length): bytes_ for length, bytes_ in held.items()},
    }


def _ensembles(
    experiment: Experiment, models: list[nn.Module], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    members = [row for row in rows if row["id"] in {f"component-{k}" for k in range(len(models))}]
    summed = ("tokens", "train_flops", "seconds", "parameters", "active_parameters")
    shared: dict[str, Any] = {key: sum(row[key] for row in members) for key in summed}
    shared["inference_flops_per_token"] = sum(row["inference_flops_per_token"] for row in members)
    shared["state_bytes"] = {
        str(length): sum(row["state_bytes"][str(length)] for row in members) for length in LENGTHS
    }
    records = []
    for how, word in (("logits", "Logit"), ("probabilities", "Probability")):
        tested = ensemble_losses(models, experiment.data.packs["test"], how)
        records.append(
            {
                "id": f"ensemble-{how}",
                "label": f"{word} ensemble of the tuned components",
                "group": "ensemble",
                "seeds": 1,
                "lr": None,
                **shared,
                "loss": tested["loss"],
                "loss_sd": None,
                "bits_per_byte": tested["bits_per_byte"],
                "note": "each member tuned on the same tokens",
            }
        )
    return records


def _save_hybrid(experiment: Experiment, model: PreTrainedModel) -> None:
    tokenizer, _ = experiment.tokenizers
    with atomic_folder(experiment.folder.path / "model") as target:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def write_samples(experiment: Experiment) -> list[dict[str, str]]:
    """Continuations of the recipe's prompts by the finished hybrid."""
    folder, settings = experiment.folder, experiment.recipe.samples
    if folder.is_done("samples"):
        return folder.record("samples")["samples"]
    model = ManticoreForCausalLM.from_pretrained(folder.path / "model").eval()
    tokenizer, _ = experiment.tokenizers
    seed = derive_seed(experiment.recipe.seed, "samples") % 2**31
    samples = [sample(model, tokenizer, prompt, settings, seed) for prompt in settings.prompts]
    folder.finish("samples", {"samples": samples})
    return samples


def sample(
    model: PreTrainedModel, tokenizer: Any, prompt: str, settings: Any, seed: int
) -> dict[str, str]:
    """One continuation; the global random stream is put back afterwards."""
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    options: dict[str, Any] = {"do_sample": False}
    described = "greedy"
    if settings.temperature > 0:
        options = {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
        }
        described = f"temperature {settings.temperature:g}, top-p {settings.top_p:g}"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=torch.ones_like(ids, device=model.device),
            max_new_tokens=settings.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            **options,
        )
    text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return {"prompt": prompt, "text": text, "settings": described}


def build_result(experiment: Experiment, command: str) -> dict[str, Any]:
    """Everything that the report shows, as one record (schema 1)."""
    recipe, found = experiment.recipe, experiment.search()
    started = time.perf_counter()
    rows = test_rows(experiment)
    test_seconds = time.perf_counter() - started
    result = {
        "schema": 1,
        "name": recipe.name,
        "seed": recipe.seed,
        "command": command,
        "kinds": experiment.data.kinds,
        "data": {kind: _plain_data(record) for kind, record in experiment.data.record.items()},
        "hybrid": describe_hybrid(experiment),
        "rows": rows,
        "goals": [],
        "samples": write_samples(experiment),
        "phases": _phases(experiment, found, rows, test_seconds),
    }
    _complete_card(experiment, result)
    return result


def _complete_card(experiment: Experiment, result: dict[str, Any]) -> None:
    """The saved hybrid's card with recipe, data, licences and numbers."""
    path = experiment.folder.path / "model"
    hybrid = ManticoreForCausalLM.from_pretrained(path)
    write_card(
        path,
        hybrid,
        name=experiment.recipe.name,
        component_licenses=[c.licence.lower() or None for c in experiment.recipe.components],
        recipe=to_plain(experiment.recipe),
        data=[_card_data(kind, record) for kind, record in experiment.data.record.items()],
        results=[_card_row(row, result["kinds"]) for row in result["rows"]],
    )


def _card_data(kind: str, record: dict[str, Any]) -> dict[str, str]:
    hashes = ", ".join(f"{name}: {digest}" for name, digest in record["sha256"].items())
    return {
        "kind": kind,
        "licence": record["licence"] or "unknown",
        "tokens": f"{record['tokens']:,}",
        "sha256": hashes or "on the hub",
    }


def _card_row(row: dict[str, Any], kinds: list[str]) -> dict[str, str]:
    losses = {kind: f"{row['loss'][kind]:.3f}" for kind in ("mean", *kinds)}
    return {"model": row["label"], **losses, "tokens": f"{row['tokens']:,}"}


def describe_hybrid(experiment: Experiment) -> dict[str, Any]:
    """The finished hybrid's shape, mixture, fit and share of FLOPs."""
    recipe, path = experiment.recipe, experiment.folder.path / "model"
    config = ManticoreForCausalLM.config_class.from_pretrained(path)
    model = ManticoreForCausalLM.from_pretrained(path)
    cost = cost_of(model, recipe.data.seq_len)
    projectors = experiment.projectors()
    finished = experiment.search()["finished"]
    return {
        "components": [_describe_component(recipe, config, k) for k in range(len(config.widths))],
        "num_blocks": config.num_blocks,
        "mixing": config.mixing,
        "partition": config.partition,
        "mixture": finished["mixture"],
        "embed_mixture": finished["embed"],
        "head_mixture": finished["head"],
        "loyalty": config.loyalty if config.mixing == "streams" else None,
        "router": config.mixing == "streams" and config.router,
        "projector_parameters": cost.projectors.parameters,
        "projector_flops_share": cost.projector_flops_share,
        # The report counts boundaries like the formulas: 1..B before the blocks, B + 1 the heads.
        "fit": [{**fit, "boundary": fit["boundary"] + 1} for fit in projectors["fit"]],
        "vocabulary": projectors["vocabulary"],
        "fast_paths": projectors["fast_paths"],
    }


def _describe_component(recipe: HybridRecipe, config: Any, k: int) -> dict[str, Any]:
    component: Any = config.components[k]
    cost: Cost = component_cost(component, recipe.data.seq_len)
    return {
        "name": component_names(recipe)[k],
        "family": component.model_type,
        "d_model": component.hidden_size,
        "n_layers": component.num_hidden_layers,
        "parameters": cost.parameters,
        "licence": recipe.components[k].licence,
        "vocab_size": config.vocab_size,
    }


def _plain_data(record: dict[str, Any]) -> dict[str, Any]:
    hashes = record["sha256"]
    joined = "; ".join(f"{Path(name).name} {digest}" for name, digest in hashes.items())
    return {**record, "sha256": joined}


def _phases(
    experiment: Experiment, found: dict[str, Any], rows: list[dict[str, Any]], test_seconds: float
) -> list[dict[str, Any]]:
    first = experiment.projectors()
    tuned = next(row for row in rows if row["id"] == "hybrid")
    others = [row for row in rows if row["group"] in ("component", "ablation")]
    return [
        {"name": "projectors", **{key: first[key] for key in ("seconds", "tokens", "flops")}},
        {
            "name": "search",
            "seconds": found["ledger"].get("seconds", 0.0),
            "tokens": found["ledger"].get("tokens", 0.0),
            "flops": found["flops"],
        },
        {
            "name": "fine-tuning of the hybrid",
            "seconds": tuned["seconds"],
            "tokens": tuned["tokens"],
            "flops": tuned["train_flops"],
        },
        {
            "name": "all other rows",
            "seconds": sum(row["seconds"] for row in others),
            "tokens": sum(row["tokens"] for row in others),
            "flops": sum(row["train_flops"] for row in others),
        },
        {"name": "test", "seconds": test_seconds, "tokens": 0, "flops": 0},
    ]
