"""Every recipe that is shipped can be run: its dry run finds nothing wrong and writes nothing."""

from __future__ import annotations

import re

import pytest

from manticore.cli.main import main, verb_parser
from manticore.config import recipe_kind, recipes_root
from manticore.config.kinds import RECIPE_KINDS

RECIPES = sorted(
    path.relative_to(recipes_root()).as_posix() for path in recipes_root().rglob("*.yaml")
)
KINDS = {name: recipe_kind(recipes_root() / name) for name in RECIPES}
HYBRIDS = [name for name in RECIPES if KINDS[name] == "hybrid"]


def test_there_are_recipes_of_every_kind():
    assert set(KINDS.values()) == set(RECIPE_KINDS)


def test_a_recipe_of_another_verb_is_sent_there(capsys):
    name = next(name for name in RECIPES if KINDS[name] == "adapt")
    assert main(["run", f"recipes/{name}"]) == 2
    assert f"manticore adapt run recipes/{name}" in capsys.readouterr().err


@pytest.mark.parametrize("name", RECIPES)
def test_the_dry_run_of_every_recipe_works(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    verb = RECIPE_KINDS[KINDS[name]].verb.split()
    assert main([*verb, f"recipes/{name}", "--dry-run"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert re.search(r"parameters: ([\d,]{6,}|unknown)|[\d,]{6,} parameters", out)
    assert "would write" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["build", "search", "finetune"])
@pytest.mark.parametrize("name", HYBRIDS)
def test_the_dry_run_of_every_stage_works(name, verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([verb, f"recipes/{name}", "--dry-run"]) == 0, capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_in_a_recipes_comment_is_about_it_and_parses(name):
    text = (recipes_root() / name).read_text(encoding="utf-8")
    verbs = [RECIPE_KINDS[KINDS[name]].verb, "adapt search"]
    commands = re.findall(rf"^#\s+manticore ({'|'.join(verbs)}) (.*)$", text, flags=re.MULTILINE)
    assert commands
    for verb, command in commands:
        parser, _ = verb_parser(verb)
        args = parser.parse_intermixed_args(command.split())
        assert args.recipe == f"recipes/{name}"
