"""Every recipe that is shipped can be run: its dry run finds nothing wrong and writes nothing."""

from __future__ import annotations

import re

import pytest

from manticore.cli.main import main, verb_parser
from manticore.config import recipe_kind, recipes_root

RECIPES = sorted(
    path.relative_to(recipes_root()).as_posix() for path in recipes_root().rglob("*.yaml")
)
HYBRIDS = [name for name in RECIPES if recipe_kind(recipes_root() / name) == "hybrid"]


def test_there_are_recipes_of_both_kinds():
    assert len(HYBRIDS) >= 1
    assert len(RECIPES) > len(HYBRIDS)


@pytest.mark.parametrize("name", RECIPES)
def test_the_dry_run_of_every_recipe_works(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", f"recipes/{name}", "--dry-run"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert re.search(r"parameters: [\d,]{6,}", out)
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
    commands = re.findall(r"^#\s+manticore (run .*)$", text, flags=re.MULTILINE)
    assert commands
    for command in commands:
        parser, _ = verb_parser("run")
        args = parser.parse_intermixed_args(command.split()[1:])
        assert args.recipe == f"recipes/{name}"
