"""Losses by kind of text: one line per row, a dot for this run, a diamond for the committed one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from manticore.reports.numbers import loss_text
from manticore.reports.palette import Look
from manticore.reports.records import Row, measured, sorted_rows
from manticore.reports.svg import Drawing, Scale, shorten, tick_texts, ticks
from manticore.reports.tables import sd_of

QUIET = Look(colour="quiet")
COMPARED = ("hybrid", "component", "ensemble")


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """One number with its spread."""

    value: float
    spread: float
    shape: str


def draw_dots(
    rows: Sequence[Row], committed: Sequence[Row], columns: Sequence[str],
    looks: Mapping[str, Look], width: float, narrow: bool = False,
) -> Markup:  # fmt: skip
    """Draw the losses of all rows, one panel per column of the table.

    Wide: names on the left, panels side by side. Narrow: names above their dots, for one column.
    """
    ordered = sorted_rows(rows)
    step, first = (36.0, 54.0) if narrow else (24.0, 48.0)
    height = first + step * len(ordered) + 6
    names = 0.0 if narrow else min(max(len(row["label"]) for row in ordered) * 6.6 + 12, 270.0)
    drawing = Drawing(width, height, _description(ordered, columns))
    room = (width - names) / len(columns)
    others = {row["id"]: row for row in committed}
    for c, column in enumerate(columns):
        start, end = names + c * room + 12, names + (c + 1) * room - 10
        marks = [_marks(row, others.get(row["id"]), column) for row in ordered]
        scale = _scale(ordered, marks, start, end)
        _frame(drawing, column, scale, height - 6)
        for i, (row, row_marks) in enumerate(zip(ordered, marks, strict=True)):
            y = first + step * i + (13.0 if narrow else 0.0)
            drawing.line(scale.start, y, scale.end, y, "grid")
            _draw_marks(drawing, row, column, row_marks, scale, y, looks.get(row["id"], QUIET))
    for i, row in enumerate(ordered):
        y = first + step * i + (0.0 if narrow else 4.0)
        strong = "over ink strong" if looks.get(row["id"], QUIET).colour == "main" else "over ink"
        drawing.text(0, y, shorten(row["label"], width if narrow else names), strong)
    return drawing.markup()


def _marks(row: Row, other: Row | None, column: str) -> list[_Mark]:
    marks = []
    for source, shape in ((other, "diamond"), (row, "dot")):
        if source is not None and measured(source["loss"].get(column)):
            spread = sd_of(source, column)
            value = float(source["loss"][column])
            marks.append(_Mark(value=value, spread=spread or 0.0, shape=shape))
    return marks


def _scale(
    rows: Sequence[Row], marks: Sequence[Sequence[_Mark]], start: float, end: float
) -> Scale:
    """A scale from the best number to the worst component or ensemble.

    What lies beyond, such as a 5-gram model, would squeeze the differences that matter.
    """
    pairs = zip(rows, marks, strict=True)
    compared = [mark for row, found in pairs if row["group"] in COMPARED for mark in found]
    flat = [mark for found in marks for mark in found]
    if not flat:
        return Scale(0.0, 1.0, start, end)
    low = min(mark.value - mark.spread for mark in flat)
    high = max(mark.value + mark.spread for mark in compared or flat)
    margin = 0.06 * (high - low) or 0.1
    return Scale(low - margin, high + margin, start, end)


def _frame(drawing: Drawing, column: str, scale: Scale, bottom: float) -> None:
    drawing.text(scale.start, 12, shorten(column, scale.end - scale.start), "ink strong")
    values = ticks(scale.low, scale.high, 5)
    for value, text in zip(values, tick_texts(values), strict=True):
        drawing.text(scale(value), 28, text, "small", "middle")
        drawing.line(scale(value), 33, scale(value), bottom, "grid")


def _draw_marks(
    drawing: Drawing, row: Row, column: str, marks: Sequence[_Mark], scale: Scale, y: float,
    look: Look,
) -> None:  # fmt: skip
    for mark in marks:
        if mark.value > scale.high:
            if mark.shape == "dot":
                drawing.text(scale.end, y + 4, f"{loss_text(mark.value)} →", "over small", "end")
            continue
        x, wide = scale(mark.value), scale(mark.value + mark.spread) - scale(mark.value)
        title = f"{row['label']}, {column}: {loss_text(mark.value)}"
        if mark.spread:
            title += f" ± {loss_text(mark.spread)}"
            drawing.line(x - wide, y, x + wide, y, f"{look.colour} error")
        if mark.shape == "dot":
            drawing.add("circle", cx=x, cy=y, r=4.5, class_=f"{look.colour} dot", title=title)
        else:
            d = f"M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"
            drawing.add("path", d=d, class_=f"{look.colour} diamond", title=title)


def _description(rows: Sequence[Row], columns: Sequence[str]) -> str:
    said = "; ".join(
        f"{row['label']}: "
        + ", ".join(f"{column} {loss_text(row['loss'][column])}" for column in columns)
        for row in rows
    )
    return f"Losses in nats per token. {said}."
