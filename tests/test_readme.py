"""The README says what is true: its snippet runs and its table is the committed record."""

import re
from pathlib import Path

import pytest

from manticore.reports import markdown_table
from manticore.reports.records import load_rows

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_snippet_runs_and_prints_the_shape_it_shows(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    snippet = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    shown = re.search(r"# (torch\.Size\(.*?\))", snippet).group(1)
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
