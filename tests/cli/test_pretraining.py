"""Recipes of the zoo: what their dry run checks before anything is trained."""

from __future__ import annotations

import pytest

from manticore.cli.main import main

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
