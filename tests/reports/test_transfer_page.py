"""The page of a transfer: what a token costs at which context, and records that do not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manticore.config.transfer_recipe import StudentConfig
from manticore.conversion.context_costs import LENGTHS, context_costs
from manticore.reports.transfer import write_transfer_report
from manticore.reports.transfer_costs import cost_tables, layout_labels
from manticore.reports.transfer_figures import SIZES
from tests.models.tiny import tiny

RECORDS = Path(__file__).resolve().parents[2] / "recipes" / "transfer"
ROWS = [
    StudentConfig(id="a", label="A", mixer="retention"),
    StudentConfig(id="b", label="B", mixer="retention", copy="all"),
    StudentConfig(id="c", label="C", mixer="retention", settings={"use_gate": False}),
    StudentConfig(id="d", label="D", mixer="retention", keep=(1, 3)),
    StudentConfig(id="e", label="E", mixer="attention"),
]


def result() -> dict[str, Any]:
    """The part of a record that costs are told from."""
    rows = [{"id": row.id, "label": row.label} for row in ROWS]
    return {"rows": rows, "costs": context_costs(tiny("gpt_neox"), ROWS)}


def test_each_layout_has_one_line_whatever_it_inherits() -> None:
    found = result()
    named = [layout["rows"] for layout in found["costs"]["layouts"]]
    assert named == [["teacher", "e"], ["a", "b"], ["c"], ["d"]]
    assert layout_labels(found) == [
        "the teacher: attention",
        "retention (A)",
        "retention (C)",
        "retention, attention in layers 1, 3",
    ]


def test_costs_grow_with_the_attention_that_is_left() -> None:
    teacher, converted, _, half = result()["costs"]["layouts"]
    n_layers, width = 4, 32
    for place, length in enumerate(LENGTHS):
        per_layer = 2 * length * width * 2  # keys and values, two bytes each
        assert teacher["cache_bytes"][place] == n_layers * per_layer
        kept = half["cache_bytes"][place] - converted["cache_bytes"][place] // 2
        assert kept == n_layers // 2 * per_layer
    assert len(set(converted["cache_bytes"])) == len(set(converted["flops_per_token"])) == 1
    # A causal score counts once for each pair that is seen: (T + 1) / 2 of them, 4 d FLOPs each.
    grown = teacher["flops_per_token"][-1] - teacher["flops_per_token"][0]
    assert grown == n_layers * 4 * width * (LENGTHS[-1] - LENGTHS[0]) // 2


@pytest.mark.parametrize("has_costs", [True, False])
def test_a_page_shows_costs_where_the_record_has_them(has_costs: bool, tmp_path: Path) -> None:
    record = json.loads((RECORDS / "prose.expected.json").read_text("utf-8"))
    if not has_costs:
        del record["costs"]
    path = tmp_path / "result.json"
    path.write_text(json.dumps(record), "utf-8")
    write_transfer_report(path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert ("Cost at context lengths" in page) == has_costs
    cells = [
        cell.text for table in cost_tables(record) for line in table.lines for cell in line.cells
    ]
    assert all(text in page for text in cells)
    assert all(f'viewBox="0 0 {w:g} {h:g}"' in page for w, h in SIZES)  # wide pages and phones
