"""The README says what is true: its snippet runs and its table is the committed record."""

import re
from pathlib import Path

import pytest

from manticore.conversion.sources import SOURCES
from manticore.mixers.table import TABLE
from manticore.models.families import FAMILIES
from manticore.reports import markdown_table
from manticore.reports.records import load_rows

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_every_snippet_runs_and_prints_what_it_shows(snippet, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    shown = re.search(r"print\(.*?\)  # (.*)", snippet).group(1)
    exec(compile(snippet, "README.md", "exec"), {})  # our own file, checked in
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize("recipe", ["quickstart"])
def test_the_table_is_that_of_the_committed_record(recipe):
    record = ROOT / "recipes" / "hybrids" / f"{recipe}.expected.json"
    kinds = ["prose", "maths"]
    assert markdown_table(load_rows(record, kinds), kinds).strip() in README


def test_both_commands_are_shown():
    assert "make demo" in README
    assert "make test" in README


def test_counts_of_families_and_mixers_are_those_of_the_tables():
    components = [name for name in FAMILIES if not name.startswith("manticore_")]
    assert f"({len(components)} of them, " in README
    assert f"The layers are {len(TABLE)} mixers" in README
    words = {9: "Nine", 10: "Ten", 11: "Eleven", 12: "Twelve", 13: "Thirteen"}
    assert f"{words[len(SOURCES)]} families of transformers (" in README
