"""Evaluation: nats, bits per byte and generated answers are those of the model, row by row."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    GPTNeoXForCausalLM,
    GPTNeoXForSequenceClassification,
    MambaForCausalLM,
)

from manticore.config.adapter_recipe import AdaptEvaluationConfig
from manticore.tuning.data import prepare_tuning_data
from manticore.tuning.evaluate import generate_answers, measure
from manticore.tuning.models import tuned_model
from tests.tuning.tiny_recipes import (
    METHODS,
    plain_recipe,
    recipe_of,
    save_model,
    sums,
    tokenizer,
    write_rows,
)


@pytest.fixture(params=["gpt_neox", "mamba"])
def setting(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[nn.Module, Any, Any]:
    """A model, its data and its recipe, prompts of different lengths."""
    folder = save_model(tmp_path / "model", request.param)
    cls: Any = GPTNeoXForCausalLM if request.param == "gpt_neox" else MambaForCausalLM
    rows = [{**row, "sum": "so " * (n % 4) + row["sum"]} for n, row in enumerate(sums(40))]
    recipe = recipe_of(plain_recipe(folder, write_rows(tmp_path / "rows.jsonl", rows)))
    model = cls.from_pretrained(folder)
    with torch.no_grad():  # far from uniform, so that a wrong token shows
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    return model.eval(), prepare_tuning_data(recipe, tokenizer(), tmp_path), recipe


@torch.no_grad()
def test_losses_are_the_sum_over_answers_one_row_at_a_time(setting) -> None:
    model, data, recipe = setting
    nats, n_scored, n_bytes = 0.0, 0, 0
    for row in data.rows["test"]:
        log_probs = model(torch.tensor(row.ids[None].tolist())).logits[0].double().log_softmax(-1)
        for place in range(len(row.prompt), len(row.ids)):
            nats -= float(log_probs[place - 1, row.ids[place]])
            n_scored += 1
        n_bytes += len(tokenizer().decode(row.ids[len(row.prompt) : -1]).encode())
    found = measure(model, data, "test", recipe.evaluate, tokenizer(), generate=False)
    # Padded batches of float32 against single rows.
    assert found["loss"] == pytest.approx(nats / n_scored, abs=1e-5)
    assert found["bits-per-byte"] == pytest.approx(nats / math.log(2) / n_bytes, abs=1e-5)
    assert not model.training


@torch.no_grad()
def test_answers_generated_side_by_side_are_those_generated_alone(setting) -> None:
    model, data, recipe = setting
    rows = data.rows["test"]
    together = generate_answers(model, rows, recipe.evaluate, tokenizer())
    for row, answer in zip(rows, together, strict=True):
        ids = row.prompt.tolist()
        for _ in range(recipe.evaluate.max_new_tokens):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        said = ids[len(row.prompt) :]
        said = said[: said.index(0)] if 0 in said else said
        assert answer == tokenizer().decode(said)
    assert len(set(together)) > 1


def test_exact_match_reads_references_as_it_reads_answers(setting, monkeypatch) -> None:
    model, data, _ = setting
    rows = data.rows["test"]
    said = [f"so it is #### {row.reference.strip()}" for row in rows[1:]] + ["nothing"]
    monkeypatch.setattr(
        "manticore.tuning.evaluate.generate_answers", lambda *_: said[-1:] + said[:-1]
    )
    config = AdaptEvaluationConfig(metrics=("exact-match",), answer_pattern=r"####\s*(\d+)")
    found = measure(model, data, "test", config, tokenizer())
    assert found["exact-match"] == pytest.approx((len(rows) - 1) / len(rows))


@torch.no_grad()
@pytest.mark.parametrize("pad", [0, 9])
def test_a_classifier_is_measured_at_the_last_token_of_every_text(tmp_path, pad) -> None:
    """With token 9 for padding, a batch that pads with another token reads the wrong place."""
    folder = save_model(tmp_path / "model")
    rows = [
        {"text": "so " * (n % 5) + row["sum"], "label": n % 2} for n, row in enumerate(sums(40))
    ]
    data = {
        "format": "classification",
        "sources": [{"path": str(write_rows(tmp_path / "rows.jsonl", rows))}],
        "splits": {"train": 0.5, "architecture": 0.0, "validation": 0.2, "test": 0.3},
    }
    recipe = recipe_of(
        plain_recipe(folder, folder, data=data, evaluate={"metrics": ["accuracy"]}, methods=METHODS)
    )
    own = tokenizer()
    own.pad_token = own.convert_ids_to_tokens(pad)
    prepared = prepare_tuning_data(recipe, own, tmp_path)
    model = tuned_model(recipe, recipe.methods[0], tmp_path, prepared, seed=0).eval()
    assert isinstance(model, GPTNeoXForSequenceClassification)
    nats, hits = 0.0, 0
    for row in prepared.rows["test"]:
        hidden = model.gpt_neox(torch.tensor(row.ids[None].tolist())).last_hidden_state[0, -1]
        log_probs = model.score(hidden).log_softmax(-1)
        nats -= float(log_probs[row.labels[0]])
        hits += int(log_probs.argmax()) == int(row.labels[0])
    found = measure(model, prepared, "test", recipe.evaluate, own)
    count = len(prepared.rows["test"])
    assert found["loss"] == pytest.approx(nats / count, abs=1e-5)
    assert found["accuracy"] == pytest.approx(hits / count)
