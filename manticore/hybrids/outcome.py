"""What a finished job leaves: the record that the report shows, samples, and the model's card."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from manticore.config import to_plain
from manticore.config.recipes import HybridRecipe
from manticore.evaluation.samples import sample
from manticore.hybrids.assembly import component_names
from manticore.hybrids.card import write_card
from manticore.hybrids.costs import cost_of
from manticore.hybrids.experiment import Experiment
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from manticore.hybrids.tested_rows import test_rows
from manticore.models.costs import Cost, component_cost
from manticore.seeds import derive_seed


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
