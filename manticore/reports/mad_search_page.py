"""The report of an architecture search: the Pareto front, in a table and in three pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from manticore.reports.mad_tables import markdown_of
from manticore.reports.numbers import DASH, count_text
from manticore.reports.records import read_json
from manticore.reports.sections import Cell, Line, Table
from manticore.reports.svg import Drawing, Scale, tick_texts, ticks
from manticore.runs import write_text

TEMPLATES = Path(__file__).parent / "templates"
COSTS = {"parameters": "parameters", "state": "state", "flops_per_token": "FLOPs per token"}
WIDTH, HEIGHT = 340.0, 260.0


def write_search_report(record: str | Path, out: str | Path) -> None:
    """Write the page (or, for a name that ends with .md, the Markdown) of a search.json."""
    found = read_json(Path(record))
    text = render_markdown(found) if Path(out).suffix == ".md" else render_page(found)
    write_text(out, text)


def render_page(found: Mapping[str, Any]) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    return environment.get_template("mad_search.html").render(
        style=style,
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
    """Score against one cost, on a logarithmic axis; the front is filled."""
    points = [
        (one, math.log10(max(one["costs"][key], 1)), 100 * one["overall"])
        for one in found["scores"]
        if one["costs"][key] is not None and one["overall"] is not None
    ]
    drawing = Drawing(WIDTH, HEIGHT, f"Score in percent against {title}")
    drawing.text(0, 12, f"score against {title}", "ink strong")
    if not points:
        drawing.text(WIDTH / 2, HEIGHT / 2, "not known", "small", "middle")
        return drawing.markup()
    x = _scale([p[1] for p in points], 40, WIDTH - 12)
    y = _scale([p[2] for p in points], HEIGHT - 34, 28)
    _axes(drawing, x, y)
    for one, across, up in points:
        is_front = one["name"] in found["front"]
        label = f"{one['name']}: {up:.1f} %, {count_text(one['costs'][key])} {title}"
        drawing.add(
            "circle", cx=x(across), cy=y(up), r=5.0 if is_front else 3.5,
            class_="main dot" if is_front else "quiet dot", title=label,
        )  # fmt: skip
    return drawing.markup()


def _axes(drawing: Drawing, x: Scale, y: Scale) -> None:
    values = ticks(y.low, y.high, 4)
    for value, text in zip(values, tick_texts(values), strict=True):
        drawing.line(x.start, y(value), x.end, y(value), "grid")
        drawing.text(x.start - 6, y(value) + 4, text, "small", "end")
    # Logarithmic: a cost is named at both ends and in the middle.
    for value in (x.low, (x.low + x.high) / 2, x.high):
        anchor = "start" if value == x.low else "end" if value == x.high else "middle"
        drawing.text(x(value), HEIGHT - 12, count_text(round(10**value)), "small", anchor)


def _scale(values: Sequence[float], start: float, end: float) -> Scale:
    margin = 0.08 * (max(values) - min(values)) or 0.1
    return Scale(min(values) - margin, max(values) + margin, start, end)


def _by_score(found: Mapping[str, Any]) -> list[Any]:
    return sorted(found["scores"], key=lambda one: -(one["overall"] or -1.0))


def _score_text(one: Mapping[str, Any]) -> str:
    return DASH if one["overall"] is None else f"{100 * one['overall']:z.1f}"


def _rung_cell(rung: Mapping[str, Any], name: str) -> Cell:
    if name not in rung["scores"]:
        return Cell(text=DASH)
    return Cell(text=f"{100 * rung['scores'][name]:z.1f}", best=name in rung["kept"])
