"""The board: what it says of the records, and that the page is sound."""

from __future__ import annotations

from pathlib import Path

import pytest

from manticore.evaluation.mad import protocol, score
from manticore.evaluation.mad.results import write_lines
from manticore.evaluation.mad.settings import BASELINES
from manticore.reports.mad_board import board_sections, render_markdown, render_page, write_board
from manticore.reports.mad_findings import difference, findings
from manticore.reports.mad_published import compare, load_published
from tests.evaluation.mad_records import make_records
from tests.reports.html_checks import PageReader

BASELINE = protocol("baseline")
LEVELS = {"Transformer": 0.8, "Mamba": 0.7, "GLA": 0.6, "<b>mine</b>": 0.9}


def records_of(levels: dict[str, float] = LEVELS, seeds: int = 3):
    return [
        record
        for name, level in levels.items()
        for record in make_records(
            name, BASELINE, range(seeds), lambda s, lr, wd, seed, at=level: at + 0.01 * seed
        )
    ]


def test_the_page_is_sound_and_says_everything():
    page = PageReader(render_page(board_sections(records_of())))
    assert not page.problems
    assert not page.loads
    assert page.count("script") == 0
    for text in (*LEVELS, "RWKV-7", "arXiv:2506.05233", "±2.5", "3 seeds", "91.0", "CR baseline"):
        assert text in page.text
    titles = [a.get("aria-label", "") for tag, a in page.elements if tag == "svg"]
    assert len(titles) == 1
    assert "Mamba: in-context-recall 71" in titles[0]


def test_equal_records_give_equal_pages():
    records = records_of()
    assert render_page(board_sections(records)) == render_page(board_sections(records[::-1]))


def test_markdown_has_the_same_numbers():
    text = render_markdown(board_sections(records_of()))
    row = next(line for line in text.splitlines() if line.startswith("| Transformer (3 seeds)"))
    assert row.count("81.0 ±2.5") == 2 + len(BASELINES)


def test_protocols_never_share_a_table():
    others = records_of({"Hyena": 0.5})
    for record in others:
        record["settings"]["protocol_version"] = 7
    sections = board_sections([*records_of(), *others])
    assert [s.title for s in sections] == [
        "baseline, version 1 (tasks version 1)",
        "baseline, version 7 (tasks version 1)",
    ]
    assert [len(s.tables[0].lines) for s in sections] == [4, 1]


def test_missing_and_diverged_trainings_are_told():
    records = records_of({"Mamba": 0.7})
    records[0]["result"] |= {"diverged": True}
    (section,) = board_sections(records[:-1])
    assert "1 trainings missing, 1 trainings diverged" in section.tables[0].lines[0].note
    assert len(section.flaws) == 2
    assert "SC baseline" in section.flaws[1]


def test_findings_claim_a_lead_only_if_seeds_bear_it_out():
    def rows(spread: float):
        found = []
        for name, mixers, level in (("striped", ["a", "b"], 0.8), ("pure", ["a"], 0.75)):
            sign = 1 if name == "striped" else -1
            made = make_records(
                name,
                BASELINE,
                [0, 1, 2],
                lambda s, lr, wd, seed, at=level, by=sign: at + by * spread * (seed - 1),
            )
            found += [{**record, "token_mixers": mixers} for record in made]
        return score(found)

    sure, unsure = rows(0.001), rows(0.05)
    assert "more than seeds explain" in findings(sure)[0]
    assert "striped architectures lead" in findings(sure)[1]
    assert "seeds alone could explain" in findings(unsure)[0]
    assert "do not decide" in findings(unsure)[1]
    by, (low, high) = difference(*sure)
    assert by == pytest.approx(0.05)
    assert low < by < high


def test_published_averages_are_what_their_columns_add_up_to():
    """A check of the data file: every printed average follows from its printed columns."""
    rows = load_published()
    assert len(rows) >= 35
    for row in rows:
        if not row.tasks:
            continue
        recall = row.tasks["in-context-recall"]
        total = sum(row.tasks.values()) - (recall if row.columns == 5 else 0)
        # Columns are printed with one digit, so their mean is within 0.06 of the printed one.
        assert total / row.columns == pytest.approx(row.printed, abs=6e-4), row


def test_averages_of_five_columns_are_recomputed_over_six():
    rows = {(row.source, row.model): row for row in load_published()}
    assert rows["MesaNet paper", "GLA"].average6 == pytest.approx(0.7665, abs=1e-4)
    assert rows["MesaNet paper", "GLA"].printed == pytest.approx(0.72)
    bare = rows["lin-attn-bench (independent reruns with fla)", "PaTH"]
    assert bare.average6 == pytest.approx(0.808)


def test_ranks_against_published_numbers():
    scores = score(records_of())
    found = {(c.source, c.of): c for c in compare(scores, load_published())}
    paper = found["DeltaNet paper (first five rows: Poli et al.)", "average of 6"]
    assert paper.names == ("GLA", "Mamba", "Transformer")
    assert paper.agreement is not None
    assert paper.agreement.spearman == pytest.approx(1.0)
    assert paper.agreement.p_value == pytest.approx(1 / 6)
    half = compare(scores, load_published(), only=["GLA", "Mamba"])
    assert all(c.agreement is None for c in half)


def test_a_board_is_written_as_page_and_as_markdown(tmp_path: Path):
    write_lines(tmp_path / "all.jsonl", records_of())
    write_board([tmp_path / "all.jsonl"], tmp_path / "board.html", tmp_path / "board.md")
    write_board([tmp_path / "all.jsonl"], tmp_path / "other.md")
    assert (tmp_path / "board.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "board.md").read_text() == (tmp_path / "other.md").read_text()
