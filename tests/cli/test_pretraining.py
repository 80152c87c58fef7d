"""Recipes of the zoo: what their dry run checks before anything is trained."""

from __future__ import annotations

import json

import pytest
import torch

from manticore.cli.main import main
from manticore.cli.pretraining import build_model
from manticore.cli.zoo_card import zoo_card
from manticore.config import load_recipe
from manticore.config.pretrain_recipe import PretrainRecipe

RECIPE = "recipes/zoo/mamba-maths.yaml"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.hidden_sze=3", "nothing that mamba has. Did you mean 'hidden_size'?"),
        ("model.hidden_size=-3", "makes no mamba"),
        ("model.num_hidden_layers=many", "makes no mamba"),
        ("model.vocab_size=10", "too small for the tokenizer's 2048 tokens"),
        ("data.tokenizer=../nowhere", "No tokenizer"),
        ("data.sources.0.path=../nowhere", "There is no file or folder"),
        ("data.splits={pretrain: 0.0, train: 0.93, architecture: 0.0}", "pretrain, validation"),
    ],
)
def test_a_model_or_text_that_cannot_be_is_refused(capsys, override, message):
    assert main(["run", RECIPE, "--dry-run", override]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_table_may_be_larger_than_the_tokenizer(capsys):
    def parameters(*override):
        assert main(["run", RECIPE, "--dry-run", *override]) == 0
        line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("parameters"))
        return int(line.split()[1].replace(",", ""))

    width = 96
    assert parameters("model.vocab_size=3000") - parameters() == (3000 - 2048) * width


@pytest.mark.parametrize("family", ["llama", "gemma", "opt", "mamba", "gpt_neox"])
def test_every_row_of_the_table_is_trained_the_end_of_text_too(family):
    sizes = {"model_type": family, "hidden_size": 64, "num_hidden_layers": 1}
    heads = {} if family == "mamba" else {"num_attention_heads": 4}
    heads |= {"num_key_value_heads": 4} if family == "gemma" else {}
    recipe = load_recipe(PretrainRecipe, RECIPE, [f"model={json.dumps(sizes | heads)}"])
    model = build_model(recipe, 40, 2)
    model(input_ids=torch.arange(40)[None], labels=torch.arange(40)[None]).loss.backward()
    reached = model.get_input_embeddings().weight.grad.abs().sum(dim=1)
    assert (reached[:-1] > 0).all()  # nothing follows the last
    assert model.generation_config.pad_token_id == 2


@pytest.mark.parametrize(("order", "columns"), [(5, 4), (0, 3)])
def test_a_card_has_a_column_for_the_ngram_model_where_there_was_one(order, columns):
    recipe = load_recipe(PretrainRecipe, RECIPE, [f"ngram_order={order}"])
    kind = {"licence": "MIT", "sha256": {"a.txt": "f00"}}
    record = {
        "parameters": 10,
        "tokens": 1000,
        "data": {"maths": kind},
        "test": {"loss": {"maths": 2.5}, "bits_per_byte": {"maths": 1.25}},
        "ngram": {"maths": 3.0} if order else {},
    }
    table = [line for line in zoo_card(recipe, record).splitlines() if line.startswith("|")]
    assert [line.count("|") - 1 for line in table] == [columns] * 3
    assert table[-1].startswith("| maths | 2.500 | 1.250 |")
