"""Numbers that no training can have are refused before anything is read."""

from __future__ import annotations

import pytest

from manticore.cli.main import main
from manticore.config import ConfigError, load_recipe
from manticore.config.adapter_recipe import AdaptRecipe
from manticore.config.ids import check_ids, check_name
from manticore.config.pretrain_recipe import PretrainRecipe
from manticore.config.recipes import HybridRecipe
from manticore.config.transfer_recipe import TransferRecipe

RECIPES = {"recipes/more/tales.yaml": AdaptRecipe, "recipes/transfer/prose.yaml": TransferRecipe}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.seq_len=0", "data.seq_len=0: at least 2"),
        ("train.batch_size=0", "batch_size=0: at least 1 .*In 'train'"),
        ("train.lr=.nan", "lr holds nan.*In 'train'"),
        ("RATES=[-1.0e-3]", "holds -0.001: give finite numbers above 0"),
        ("RATES=[.inf]", "holds inf"),
    ],
)
def test_it_is_named_with_what_is_allowed(recipe, override, message):
    rates = "rates.rates" if RECIPES[recipe] is AdaptRecipe else "rates"
    with pytest.raises((ConfigError, ValueError), match=message):
        load_recipe(RECIPES[recipe], recipe, [override.replace("RATES", rates)])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.threshold=nan", "threshold=nan: give a number from 0 to 1"),
        ("search.mixture_lr=0", "mixture_lr holds 0"),
        ("samples.top_p=0", "top_p=0 leaves no token"),
        ("samples.temperature=-1", "temperature=-1: give a number of 0 or more"),
        ("compare.lr_factors=[]", "the number of lr_factors=0: at least 1"),
        ("compare.row_lr={hybrid: .nan}", "row_lr.hybrid holds nan"),
        ("projectors.ridge=-1", "ridge=-1"),
        ("components.1.lr=-1", "lr holds -1: .*'components.1'"),
        ("finetune.beta2=1", "beta2=1: give a number of at least 0 and below 1"),
    ],
)
def test_a_hybrid_is_refused_before_its_first_stage(override, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(HybridRecipe, "recipes/hybrids/quickstart.yaml", [override])


@pytest.mark.parametrize("recipe", ["hybrids/quickstart.yaml", "zoo/mamba-maths.yaml"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.eval_rows=0", "data.eval_rows=0: at least 1"),
        ("data.sources=[]", "data.sources is empty"),
        ("data.sources.0.weight=.nan", "weight=nan: give a number of 0 or more"),
        ("data.sources.0.limit=0", "limit=0: at least 1 .*'data.sources.0'"),
        ("data.splits.train=2", "train=2: give a number from 0 to 1"),
        ("data.splits.test=0.5", "sum to 1.*another has to give way"),
    ],
)
def test_text_is_divided_by_shares_that_make_sense(recipe, override, message):
    cls = HybridRecipe if "hybrids" in recipe else PretrainRecipe
    with pytest.raises(ConfigError, match=message):
        load_recipe(cls, recipe, [override])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "a"], "rows need ids, each once; given: a, a"),
        (["../a"], "'../a' among rows names a folder"),
        (["a b"], "use letters, digits"),
        (["teacher"], "'teacher' among rows is taken"),
        (["component-1"], "Choose one that is not teacher, component-"),
    ],
)
def test_ids_are_names_of_folders_that_nothing_else_has(ids, message):
    check_ids("rows", ["a.b", "c_d-2", "component"], ["teacher", "component-*"])
    with pytest.raises(ValueError, match=message):
        check_ids("rows", ids, ["teacher", "component-*"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rows.0.id=a/b", "'a/b' among rows names a folder"),
        ("align.lr=0", "align.lr holds 0"),
        ("calibration_rows=-1", "calibration_rows=-1: at least 0"),
        ("rows=[]", "There are no rows"),
    ],
)
def test_a_transfer_is_refused_before_its_first_stage(override, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        load_recipe(TransferRecipe, "recipes/transfer/prose.yaml", [override, "goals=[]"])


@pytest.mark.parametrize("name", ["", " ", "..", "../elsewhere", "a/b", "a\\b"])
def test_a_recipes_name_is_no_path(name):
    check_name("my run, the 2nd")
    with pytest.raises(ValueError, match="names the run's folder"):
        check_name(name)


@pytest.mark.parametrize(
    "recipe",
    ["hybrids/quickstart.yaml", "zoo/mamba-maths.yaml", "transfer/prose.yaml", "more/maths.yaml"],
)
def test_every_kind_of_recipe_checks_its_name(recipe, capsys):
    verb = {"transfer": ["transfer", "run"], "more": ["adapt", "run"]}
    words = verb.get(recipe.split("/")[0], ["run"])
    assert main([*words, f"recipes/{recipe}", "--dry-run", "name=../elsewhere"]) == 2
    assert "names the run's folder" in capsys.readouterr().err
