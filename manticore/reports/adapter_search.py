"""The report of a search over adapter shapes: front, table, rungs, and what to say of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manticore.reports.adapters import COSTS, NAMES, draw_panel, method_table, render_page
from manticore.reports.mad_tables import markdown_of, text_of
from manticore.reports.numbers import DASH, loss_text
from manticore.reports.records import read_json
from manticore.reports.sections import Cell, Line, Table
from manticore.runs import write_text
from manticore.training.rates import divergences


def search_text(result: Mapping[str, Any]) -> list[str]:
    """The table for a terminal, with what follows from it."""
    said = [*divergences(result["rows"]), *result["notes"]]
    return [*text_of(method_table(result)), *said, "", result["winner"]["config"]]


def search_markdown(result: Mapping[str, Any]) -> str:
    """Tables and notes as Markdown."""
    tables = [markdown_of(method_table(result)), markdown_of(rung_table(result))]
    fronts = [
        f"- Front of {NAMES[result['metrics'][0]]} against {COSTS[key][0]}: "
        + ", ".join(_label(result, name) for name in names)
        for key, names in result["front"].items()
    ]
    notes = [f"- {note}" for note in (*divergences(result["rows"]), *result["notes"])]
    config, recipe = ready(result)
    code = [f"```python\n{config}```", f"```yaml\n{recipe}```"]
    return "\n\n".join([*tables, "\n".join([*fronts, *notes]), *code])


def ready(result: Mapping[str, Any]) -> list[str]:
    """The winner as arguments of MoReConfig and as a section of a recipe."""
    return [result["winner"]["config"], result["winner"]["recipe"]]


def write_search_report(record: str | Path, out: str | Path) -> None:
    """Write a search's result.json as a page, or as Markdown for a name ending with .md."""
    result = read_json(Path(record))
    if Path(out).suffix == ".md":
        write_text(out, f"# {result['name']}\n\n{search_markdown(result)}\n")
        return
    panels = [draw_panel(result, key) for key in result["front"]]
    tables = [method_table(result), rung_table(result)]
    write_text(out, render_page(result, tables, panels, ready(result)))


def rung_table(result: Mapping[str, Any]) -> Table:
    """What the look and each rung saw of each shape; bold where it was kept."""
    history = result["history"]
    names = list(history[0]["scores"]) if history else []
    names.sort(key=lambda name: -sum(name in rung["scores"] for rung in history))
    lines = [
        Line(
            label=name,
            cells=[
                Cell(text=f"{100 * result['look'][name]:.1f} %"),
                *(_rung_cell(rung, name) for rung in history),
            ],
        )
        for name in names
    ]
    rungs = [f"after {rung['steps']} steps" for rung in history]
    header = ["shape (blocks x rank)", "share of the change", *rungs]
    return Table(
        caption="Screening: the share of the looked-at change that a shape can hold, then the "
        "validation measure that chooses the rate, bold where kept",
        header=header,
        lines=lines,
    )


def _rung_cell(rung: Mapping[str, Any], name: str) -> Cell:
    if name not in rung["scores"]:
        return Cell(text=DASH)
    return Cell(text=loss_text(rung["scores"][name]), best=name in rung["kept"])


def _label(result: Mapping[str, Any], name: str) -> str:
    return next(str(row["label"]) for row in result["rows"] if row["id"] == name)
