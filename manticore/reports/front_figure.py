"""A Pareto front as a picture: a measure against one cost on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from manticore.reports.numbers import count_text
from manticore.reports.svg import Drawing, Scale, tick_texts, ticks

WIDTH, HEIGHT = 340.0, 260.0
LINE = 13.0


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """One candidate."""

    cost: float
    """Above 0."""
    value: float
    """The measure."""
    title: str
    """What a pointer on it says."""
    is_front: bool
    """Whether nothing beats it; such a point is filled."""
    label: str = ""
    """Written beside it, if it is on the front."""


def draw_front(
    points: Sequence[FrontPoint],
    title: str,
    cost_text: Callable[[float], str] = count_text,
) -> Markup:
    """Draw the points; the page says below what filled ones are.

    Args:
        cost_text: how a cost is written at the axis.
    """
    drawing = Drawing(WIDTH, HEIGHT, title)
    drawing.text(0, 12, title, "ink strong")
    if not points:
        drawing.text(WIDTH / 2, HEIGHT / 2, "not known", "small", "middle")
        return drawing.markup()
    x = _scale([math.log10(point.cost) for point in points], 40, WIDTH - 12)
    y = _scale([point.value for point in points], HEIGHT - 34, 28)
    _axes(drawing, x, y, cost_text)
    for point in sorted(points, key=lambda point: point.is_front):
        drawing.add(
            "circle", cx=x(math.log10(point.cost)), cy=y(point.value),
            r=5.0 if point.is_front else 3.5,
            class_="main dot" if point.is_front else "quiet dot", title=point.title,
        )  # fmt: skip
    _labels(drawing, [p for p in points if p.is_front and p.label], x, y)
    return drawing.markup()


def _labels(drawing: Drawing, points: Sequence[FrontPoint], x: Scale, y: Scale) -> None:
    """Names towards the middle of the picture; one that would cover another moves up."""
    free = {"start": math.inf, "end": math.inf}
    for point in sorted(points, key=lambda point: y(point.value), reverse=True):
        place = x(math.log10(point.cost))
        anchor = "start" if place < WIDTH / 2 else "end"
        height = free[anchor] = min(y(point.value) + 4, free[anchor] - LINE)
        drawing.text(place + (9 if anchor == "start" else -9), height, point.label, "small", anchor)


def _axes(drawing: Drawing, x: Scale, y: Scale, cost_text: Callable[[float], str]) -> None:
    values = ticks(y.low, y.high, 4)
    for value, text in zip(values, tick_texts(values), strict=True):
        drawing.line(x.start, y(value), x.end, y(value), "grid")
        drawing.text(x.start - 6, y(value) + 4, text, "small", "end")
    # Logarithmic: a cost is named at both ends and in the middle.
    for value in (x.low, (x.low + x.high) / 2, x.high):
        anchor = "start" if value == x.low else "end" if value == x.high else "middle"
        drawing.text(x(value), HEIGHT - 12, cost_text(10**value), "small", anchor)


def _scale(values: Sequence[float], start: float, end: float) -> Scale:
    margin = 0.08 * (max(values) - min(values)) or 0.1
    return Scale(min(values) - margin, max(values) + margin, start, end)
