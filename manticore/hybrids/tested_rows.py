"""Phase D: test every row once, the ensembles included, and write down what it all cost."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from manticore.evaluation.language import ensemble_losses, losses_by_kind
from manticore.hybrids.costs import cache_bytes_of, cost_of
from manticore.hybrids.experiment import Experiment
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from manticore.hybrids.trials import trained_row
from manticore.models.costs import cache_bytes, component_cost
from manticore.runs import atomic_folder


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
        "diverged_at": result.get("diverged_at", {}),
        "note": note,
    }


LENGTHS = (1024, 32768)


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
