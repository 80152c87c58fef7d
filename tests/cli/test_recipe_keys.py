"""`manticore recipe`: the shipped recipes, and every key that a recipe may have."""

from __future__ import annotations

from pathlib import Path

import pytest

from manticore.cli.main import main
from manticore.cli.recipe import reference
from manticore.config import load_recipe, recipes_root, to_plain
from manticore.config.kinds import RECIPE_KINDS

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def test_every_shipped_recipe_is_listed(capsys):
    assert main(["recipe"]) == 0
    out = capsys.readouterr().out
    for path in recipes_root().rglob("*.yaml"):
        assert f"recipes/{path.relative_to(recipes_root()).as_posix()}" in out


@pytest.mark.parametrize("kind", RECIPE_KINDS)
def test_every_key_of_a_shipped_recipe_is_explained(kind, capsys):
    assert main(["recipe", kind]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    explained = dict(line.split("  (", 1) for line in lines)
    paths = [p for p in recipes_root().rglob("*.yaml") if f"kind: {kind}\n" in p.read_text()]
    recipe = to_plain(load_recipe(RECIPE_KINDS[kind].recipe, paths[0]))
    assert set(_dotted(recipe, explained)) <= explained.keys()


def _dotted(plain, explained, prefix=""):
    for key, value in plain.items():
        name = prefix + key
        yield name
        if isinstance(value, dict) and not explained[name].startswith("names"):
            yield from _dotted(value, explained, f"{name}.")
        for item in value if isinstance(value, list) else ():
            if isinstance(item, dict):
                yield from _dotted(item, explained, f"{name}.[].")


def test_words_leave_the_keys_that_contain_one(capsys):
    assert main(["recipe", "recipes/transfer/prose.yaml", "freeze.", "align.lr"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert [line.split("  ")[0] for line in lines] == [
        "align.lr", "freeze.window", "freeze.threshold", "freeze.patience",
        "freeze.warmup_steps", "freeze.latest",
    ]  # fmt: skip
    assert "default 0.01" in lines[0]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["hybrids"], "Did you mean 'hybrid'?"),
        (["transfer", "aling.lr"], "Did you mean 'align.lr'?"),
        (["nowhere.yaml"], "does not exist"),
    ],
)
def test_what_does_not_exist_is_refused_with_a_hint(words, hint, capsys):
    assert main(["recipe", *words]) == 2
    assert hint in capsys.readouterr().err


def test_the_page_in_the_documentation_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == reference() + "\n", (
        "run: manticore recipe --markdown > docs/recipes.md"
    )
