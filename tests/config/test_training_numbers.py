"""Numbers that no training can have are refused before anything is read."""

from __future__ import annotations

import pytest

from manticore.config import ConfigError, load_recipe
from manticore.config.adapter_recipe import AdaptRecipe
from manticore.config.transfer_recipe import TransferRecipe

RECIPES = {"recipes/more/tales.yaml": AdaptRecipe, "recipes/transfer/prose.yaml": TransferRecipe}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.seq_len=0", "data.seq_len=0: at least 2"),
        ("train.batch_size=0", "train.batch_size=0: at least 1"),
        ("train.lr=.nan", "train.lr holds nan"),
        ("RATES=[-1.0e-3]", "holds -0.001: give finite numbers above 0"),
        ("RATES=[.inf]", "holds inf"),
    ],
)
def test_it_is_named_with_what_is_allowed(recipe, override, message):
    rates = "rates.rates" if RECIPES[recipe] is AdaptRecipe else "rates"
    with pytest.raises((ConfigError, ValueError), match=message):
        load_recipe(RECIPES[recipe], recipe, [override.replace("RATES", rates)])
