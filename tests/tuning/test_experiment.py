"""A comparison of methods: rates, seeds, goals, and adapters that plain PEFT loads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from manticore.cli.adapt_run import write_models
from manticore.config.adapter_recipe import GoalConfig
from manticore.reports.adapters import method_text
from manticore.runs import RunFolder
from manticore.tuning.evaluate import measure
from manticore.tuning.experiment import TuningExperiment, badness, judge
from manticore.tuning.trial import prepared
from tests.tuning.tiny_recipes import (
    METHODS,
    plain_recipe,
    recipe_of,
    save_model,
    sums,
    tokenizer,
    write_rows,
)


def experiment(tmp_path: Path, seeds: tuple[int, ...] = (0,), **changes: Any) -> TuningExperiment:
    """An experiment of a second in `tmp_path/run`."""
    folder = tmp_path / "model"
    if not folder.exists():
        save_model(folder)
    rows = write_rows(tmp_path / "rows.jsonl", sums(40))
    recipe = recipe_of(plain_recipe(folder, rows, **changes))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir(parents=True, exist_ok=True)
    return TuningExperiment(recipe, run, tmp_path, seeds, progress=False)


def finished(tmp_path: Path, **changes: Any) -> tuple[TuningExperiment, list[dict[str, Any]]]:
    """An experiment with its rows, and its models written."""
    made = experiment(tmp_path, rates={"rates": []}, **changes)
    rows = made.rows()
    write_models(made, {"rows": rows, "metrics": ["loss"], "goals": [], "data": {"licences": {}}})
    return made, rows


# Models that others load


def test_models_load_with_plain_peft_and_transformers_and_measure_the_same(tmp_path) -> None:
    made, rows = finished(tmp_path)
    _, data = prepared(made.recipe, tmp_path)
    for row in rows:
        folder = tmp_path / "run" / "models" / row["id"]
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        if row["id"] == "full":
            model: Any = AutoModelForCausalLM.from_pretrained(folder)
        else:
            model = peft.PeftModel.from_pretrained(base, folder)
        found = measure(model, data, "test", made.recipe.evaluate, tokenizer())
        for key, value in row["mean"].items():
            assert found[key] == pytest.approx(value, abs=1e-6), (row["id"], key)


def test_an_adapter_of_a_classifier_brings_its_classifier(tmp_path) -> None:
    labelled = [{"text": row["sum"], "label": n % 3} for n, row in enumerate(sums(40))]
    data = {
        "format": "classification",
        "sources": [{"path": str(write_rows(tmp_path / "labelled.jsonl", labelled))}],
        "splits": {"train": 0.5, "architecture": 0.0, "validation": 0.25, "test": 0.25},
    }
    changes = {"data": data, "evaluate": {"metrics": ["accuracy"]}, "methods": METHODS[1:]}
    made, rows = finished(tmp_path, **changes)
    _, prepared_data = prepared(made.recipe, tmp_path)
    for row in rows:
        folder = tmp_path / "run" / "models" / row["id"]
        assert any("score" in name for name in load_file(folder / "adapter_model.safetensors"))
        base = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "model", num_labels=3, pad_token_id=prepared_data.pad
        )
        model: Any = peft.PeftModel.from_pretrained(base, folder)
        found = measure(model, prepared_data, "test", made.recipe.evaluate, tokenizer())
        assert found["loss"] == pytest.approx(row["mean"]["loss"], abs=1e-6)


# Seeds


def test_a_seed_decides_the_training_and_no_global_state_does(tmp_path) -> None:
    methods = METHODS[2:]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    _, first = finished(tmp_path / "a", methods=methods, goals=[], seeds=(0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    _, second = finished(tmp_path / "b", methods=methods, goals=[], seeds=(0, 1))
    assert first[0]["by_seed"] == second[0]["by_seed"]
    by_seed = first[0]["by_seed"]["loss"]
    assert by_seed[0] != by_seed[1]
    mean = sum(by_seed) / 2
    assert first[0]["mean"]["loss"] == pytest.approx(mean)
    assert first[0]["sd"]["loss"] == pytest.approx(abs(by_seed[0] - by_seed[1]) / math.sqrt(2))


# Learning rates


BOTTOMS = {"full": 0.0004, "lora": 0.003, "more": 0.03}


def valley(settings: dict[str, Any]) -> dict[str, Any]:
    """In place of a training: a loss whose lowest rate is known for each method."""
    method, lr = settings["method"]["id"], settings["lr"]
    loss = abs(math.log(lr / BOTTOMS[method]))
    return {"id": method, "lr": lr, "seed": settings["seed"], "validation": {"loss": loss}}


def test_a_grid_grows_where_its_best_rate_lies_at_the_end(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("manticore.tuning.experiment.train_method", valley)
    made = experiment(tmp_path, rates={"rates": [0.001, 0.003, 0.01], "extensions": 2})
    chosen = made.choose_rates()
    assert chosen["full"]["lr"] == pytest.approx(0.001 / 3)
    assert chosen["lora"]["lr"] == 0.003
    assert chosen["more"]["lr"] == pytest.approx(0.01 / 0.3)
    # A wider rate that is best is tried from there once more; it has to lie inside.
    assert {name: len(result["tried"]) for name, result in chosen.items()} == {
        "full": 5, "lora": 3, "more": 5
    }  # fmt: skip


def test_a_rate_of_ones_own_is_not_searched(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("manticore.tuning.experiment.train_method", valley)
    methods = [{**METHODS[0], "lr": 0.5}, *METHODS[1:]]
    made = experiment(tmp_path, methods=methods, rates={"rates": [0.001, 0.003], "extensions": 2})
    tried = {name: list(result["tried"]) for name, result in made.choose_rates().items()}
    assert tried == {"full": ["0.5"], "lora": ["0.001", "0.003"], "more": ["0.001", "0.003"]}


def test_a_rate_that_diverges_is_a_finished_trial_and_the_others_go_on(
    tmp_path, monkeypatch
) -> None:
    made = experiment(tmp_path, methods=METHODS[1:2], goals=[], rates={"rates": [0.003, 1e6]})
    (row,) = made.rows()
    assert row["lr"] == 0.003
    assert set(row["diverged_at"]) == {"1e+06"}
    assert math.isfinite(row["mean"]["loss"])
    result = {"rows": [row], "metrics": ["loss"], "goals": []}
    assert any("diverged at learning rate 1e+06 (step" in line for line in method_text(result))
    monkeypatch.setattr("manticore.tuning.trial._train_method", pytest.fail)
    assert made.rows()[0]["by_seed"] == row["by_seed"]


def test_a_method_that_diverges_at_every_rate_is_told(tmp_path) -> None:
    made = experiment(tmp_path, methods=METHODS[1:2], goals=[], rates={"rates": [1e6]})
    with pytest.raises(ValueError, match=r"lora diverged at every .* is not finite"):
        made.rows()


def test_what_is_not_a_number_never_wins() -> None:
    assert badness({"loss": "nan"}, "loss") == math.inf
    assert badness({"accuracy": float("nan")}, "accuracy") == math.inf
    assert badness({"accuracy": 0.9}, "accuracy") < badness({"accuracy": 0.1}, "accuracy")


# Goals


def verdict(
    metric: str, row: float, other: float, sd: float | None, parameters: int = 25
) -> dict[str, Any]:
    rows = [
        {"id": "a", "label": "A", "mean": {metric: row}, "sd": {metric: 9.0},
         "parameters": parameters, "seeds": [0]},
        {"id": "b", "label": "B", "mean": {metric: other}, "sd": {metric: sd},
         "parameters": 100, "seeds": [0] if sd is None else [0, 1]},
    ]  # fmt: skip
    (found,) = judge(rows, [GoalConfig(row="a", against="b")], metric)
    return found


@pytest.mark.parametrize(
    ("metric", "row", "other", "sd", "is_met"),
    [
        ("loss", 1.09, 1.0, 0.1, True),
        ("loss", 1.11, 1.0, 0.1, False),
        ("loss", 0.5, 1.0, 0.1, True),
        ("matthews", 0.41, 0.5, 0.1, True),
        ("matthews", 0.39, 0.5, 0.1, False),
        ("loss", 1.001, 1.0, None, False),
        ("loss", 1.0, 1.0, None, True),
    ],
)
def test_a_goal_is_met_within_the_others_deviation(metric, row, other, sd, is_met) -> None:
    found = verdict(metric, row, other, sd)
    assert found["met"] is is_met
    assert ("does not reach" in found["sentence"]) is not is_met
    assert "25 % of the parameters" in found["sentence"]
    assert ("one standard deviation" in found["sentence"]) is (sd is not None)
