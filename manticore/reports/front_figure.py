"""A Pareto front as a picture: a measure against one cost on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from manticore.reports.numbers import count_text
from manticore.reports.svg import Drawing, Scale, tick_texts, ticks

WIDTH, HEIGHT = 340.0, 260.0


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
    return drawing.markup()


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
