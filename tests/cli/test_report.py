"""`manticore report` draws whatever run it is given, or says what it can draw."""

from __future__ import annotations

import json
import shutil

import pytest

from manticore.cli.main import main
from manticore.config import recipes_root
from manticore.evaluation.mad.protocol import PROFILES
from manticore.evaluation.mad.results import ResultsFolder

RECORDS = (
    "transfer/stories.expected.json",
    "more/novels.expected.json",
    "more/search.expected.json",
)


@pytest.mark.parametrize("name", RECORDS)
def test_a_folder_and_its_record_give_the_same_page(name, tmp_path, capsys):
    shutil.copy(recipes_root() / name, tmp_path / "result.json")
    assert main(["report", str(tmp_path), "--dry-run"]) == 0
    assert f"would write {tmp_path / 'report.html'}" in capsys.readouterr().out
    assert main(["report", str(tmp_path)]) == 0
    assert main(["report", str(tmp_path / "result.json")]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "result.json").read_text())["command"] in page
    assert (tmp_path / "result.html").read_text(encoding="utf-8") == page


def test_mad_records_become_a_board(tmp_path, capsys):
    lines = (recipes_root() / "mad" / "pocket.jsonl").read_text(encoding="utf-8").splitlines()
    with ResultsFolder(tmp_path / "mad").open(PROFILES["pocket"]) as folder:
        for number, line in enumerate(lines[:40]):
            folder.write(str(number), json.loads(line))
    assert main(["report", str(tmp_path / "mad")]) == 0
    assert f"Report: {tmp_path / 'mad' / 'board.html'}" in capsys.readouterr().out
    assert "<!doctype html>" in (tmp_path / "mad" / "board.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("record", [{"name": "neox", "test": {}}, {"verb": "eval"}, [1]])
def test_a_record_without_a_page_is_told_which_have_one(record, tmp_path, capsys):
    (tmp_path / "result.json").write_text(json.dumps(record))
    assert main(["report", str(tmp_path)]) == 2
    assert "`transfer run`, `adapt run`, `adapt search`" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mad/search.json", "mad/pocket.jsonl", "more/sums.expected.json"])
def test_a_committed_record_has_a_page(name, tmp_path):
    page = tmp_path / "page.html"
    assert main(["report", str(recipes_root() / name), "--out", str(page)]) == 0
    assert page.read_text(encoding="utf-8").count("<table") >= 1


def test_findings_of_the_doctor_become_their_page(tmp_path):
    record, page = tmp_path / "found.json", tmp_path / "found.html"
    words = ["doctor", "--family", "gpt2", "--check", "causality", "--quiet"]
    assert main([*words, "--out", str(record), "--html", str(page)]) == 0
    assert main(["report", str(record), "--out", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text() == page.read_text()


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("hybrids/quickstart.expected.json", "manticore report RUN --expected"),
        ("hybrids/ablation.expected.json", "manticore report RUN --expected"),
        ("mad/savings.json", "recipes/mad/pocket.jsonl"),
        ("transfer/placement.json", "a record of `transfer place`, which has no page"),
    ],
)
def test_a_committed_record_without_a_page_says_what_to_give(name, advice, capsys):
    assert main(["report", str(recipes_root() / name), "--dry-run"]) == 2
    assert advice in capsys.readouterr().err


def test_every_committed_record_is_drawn_or_refused_with_advice(capsys):
    records = sorted(recipes_root().glob("*/*.json*"))
    assert len(records) >= 15
    for record in records:
        drawn = main(["report", str(record), "--dry-run"]) == 0
        said = capsys.readouterr()
        assert "would write" in said.out if drawn else "Give " in said.err or "RUN" in said.err


def test_a_second_table_belongs_to_hybrids(tmp_path, capsys):
    record = recipes_root() / "transfer" / "stories.expected.json"
    words = ["report", str(record), "--out", str(tmp_path / "page.html")]
    assert main([*words, "--expected", str(record)]) == 2
    assert "only reports of `manticore run`" in capsys.readouterr().err
