"""The report of an architecture search: the Pareto front, in a table and in three pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from manticore.reports.front_figure import FrontPoint, draw_front
from manticore.reports.mad_tables import markdown_of
from manticore.reports.numbers import DASH, count_text
from manticore.reports.records import read_json
from manticore.reports.rendering import render
from manticore.reports.sections import Cell, Line, Table
from manticore.runs import write_text

COSTS = {"parameters": "parameters", "state": "state", "flops_per_token": "FLOPs per token"}


def write_search_report(record: str | Path, out: str | Path) -> None:
    """Write the page (or, for a name that ends with .md, the Markdown) of a search.json."""
    found = read_json(Path(record))
    text = render_markdown(found) if Path(out).suffix == ".md" else render_page(found)
    write_text(out, text)


def render_page(found: Mapping[str, Any]) -> str:
    """The page as text."""
    return render(
        "mad_search.html",
        summary=summary(found),
        panels=[draw_panel(found, key, title) for key, title in COSTS.items()],
        tables=[front_table(found), screening_table(found)],
        notes=found.get("notes", []),
    )


def render_markdown(found: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    tables = [
        f"{t.caption}:\n\n{markdown_of(t)}" for t in (front_table(found), screening_table(found))
    ]
    notes = [f"- {note}" for note in found.get("notes", [])]
    return "\n\n".join(["# Architecture search", summary(found), *tables, *notes]) + "\n"


def summary(found: Mapping[str, Any]) -> str:
    """One sentence: how many candidates, how many remain, what it cost."""
    tried = len(found["history"][0]["scores"]) if found["history"] else len(found["scores"])
    saved = 1 - found["steps"] / found["exhaustive"]
    return (
        f"{tried} architectures were tried, {len(found['scores'])} measured whole, "
        f"{len(found['front'])} lie on the Pareto front. {found['steps']:,} steps at most "
        f"instead of {found['exhaustive']:,} for measuring all ({100 * saved:.0f} % saved)."
    )


def front_table(found: Mapping[str, Any]) -> Table:
    """What was measured whole, best first; the front is marked."""
    lines = []
    for one in _by_score(found):
        cells = [Cell(text=_score_text(one))]
        cells += [Cell(text=count_text(one["costs"][key])) for key in COSTS]
        is_front = one["name"] in found["front"]
        lines.append(
            Line(label=one["name"], tag="front" if is_front else "", main=is_front, cells=cells)
        )
    header = ["architecture", "score", *COSTS.values()]
    return Table(caption="Measured whole; score in percent", header=header, lines=lines)


def screening_table(found: Mapping[str, Any]) -> Table:
    """Every candidate's screening score in each rung; a dash means that it was not in it."""
    rungs = found["history"]
    names = list(rungs[0]["scores"]) if rungs else []
    names.sort(
        key=lambda name: (-sum(name in rung["scores"] for rung in rungs), -rungs[0]["scores"][name])
    )
    lines = [Line(label=name, cells=[_rung_cell(rung, name) for rung in rungs]) for name in names]
    header = ["architecture", *(f"at {100 * rung['rung']['share']:g} % of steps" for rung in rungs)]
    return Table(
        caption="Screening: normalised validation accuracy, in percent, bold where kept",
        header=header,
        lines=lines,
    )


def draw_panel(found: Mapping[str, Any], key: str, title: str) -> Markup:
    """Score against one cost."""
    points = [
        FrontPoint(
            cost=max(one["costs"][key], 1),
            value=100 * one["overall"],
            title=f"{one['name']}: {100 * one['overall']:.1f} %, "
            f"{count_text(one['costs'][key])} {title}",
            is_front=one["name"] in found["front"],
        )
        for one in found["scores"]
        if one["costs"][key] is not None and one["overall"] is not None
    ]
    return draw_front(points, f"score in percent against {title}", _whole)


def _whole(cost: float) -> str:
    return count_text(round(cost))


def _by_score(found: Mapping[str, Any]) -> list[Any]:
    return sorted(found["scores"], key=lambda one: -(one["overall"] or -1.0))


def _score_text(one: Mapping[str, Any]) -> str:
    return DASH if one["overall"] is None else f"{100 * one['overall']:z.1f}"


def _rung_cell(rung: Mapping[str, Any], name: str) -> Cell:
    if name not in rung["scores"]:
        return Cell(text=DASH)
    return Cell(text=f"{100 * rung['scores'][name]:z.1f}", best=name in rung["kept"])
