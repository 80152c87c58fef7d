"""Loss curves: training, validation by kind of text, and the search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from manticore.reports.numbers import count_text
from manticore.reports.palette import Look
from manticore.reports.records import measured
from manticore.reports.svg import Drawing, Scale, path_of, thinned, tick_texts, ticks

LEFT, TOP, BOTTOM, RIGHT = 40.0, 28.0, 34.0, 10.0
MOST_POINTS = 90
OTHER = Look(colour="faint")

Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture of curves over the same steps."""

    title: str
    """What is measured."""
    curves: dict[str, Points]
    """Row id -> (step, loss)."""


def curve_panels(metrics: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """The panels that the metrics have data for."""
    curves: dict[str, dict[str, Points]] = {}
    for record in metrics:
        for title, value in _values(record):
            if measured(value) and "step" in record:
                row = str(record.get("row", "hybrid"))
                point = (float(record["step"]), float(value))
                curves.setdefault(title, {}).setdefault(row, []).append(point)
    order = sorted(curves, key=_rank)
    return [Panel(title=title, curves=curves[title]) for title in order]


def draw_curves(
    panel: Panel,
    looks: Mapping[str, Look],
    labels: Mapping[str, str],
    width: float,
    height: float,
    unit: str = "steps",
) -> Markup:
    """Draw one panel of curves over steps or tokens; noisy ones are averaged over neighbours."""
    thin = {row: thinned(points, MOST_POINTS) for row, points in panel.curves.items()}
    every = [point for points in thin.values() for point in points]
    across = Scale(0.0, max(x for x, _ in every), LEFT, width - RIGHT)
    low, high = _bounds(list(thin.values()))
    up = Scale(low, high, height - BOTTOM, TOP)
    drawing = Drawing(width, height, _description(panel, labels, unit))
    drawing.text(0, 14, panel.title, "ink strong")
    _axes(drawing, across, up, unit)
    # The hybrid is drawn last, so that nothing lies on top of it.
    for row in sorted(thin, key=lambda name: _depth(looks.get(name, OTHER))):
        look = looks.get(row, OTHER)
        line = [(across(x), up(min(y, up.high))) for x, y in _below(thin[row], up.high)]
        label = f"{labels.get(row, row)}: ends at {thin[row][-1][1]:.3f}"
        drawing.add(
            "path", d=path_of(line), class_=f"{look.colour} curve",
            stroke_dasharray=look.dash, title=label,
        )  # fmt: skip
    return drawing.markup()


def _values(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    stage, loss = record.get("stage"), record.get("loss")
    if stage == "validate" and isinstance(loss, Mapping):
        return [(f"Validation, {kind}", value) for kind, value in loss.items()]
    if isinstance(loss, Mapping):
        return []
    if stage == "search":
        mixture = record.get("arch_loss")
        # A search of the frozen hybrid trains no weights: both are the same number.
        training = [("Search: training loss", loss)] if loss != mixture else []
        return [*training, ("Search: mixture loss", mixture)]
    titles = {"finetune": "Fine-tuning", "projectors": "Projectors", "validate": "Validation"}
    return [(titles[stage], loss)] if stage in titles else []


def _rank(title: str) -> int:
    starts = ("Fine-tuning", "Validation, mean", "Validation", "Search", "Projectors")
    return next(i for i, start in enumerate(starts) if title.startswith(start))


def _bounds(curves: Sequence[Points]) -> tuple[float, float]:
    """A range that shows the ends of all curves rather than the fall at the start."""
    values = sorted(y for points in curves for _, y in points)
    low, high = values[0], values[-1]
    ends = max(points[-1][1] for points in curves)
    # The first steps may be several times higher: the difference that matters is at the end.
    high = min(high, max(ends + 0.6 * (ends - low), low + 3.0 * (ends - low), low * 1.35))
    margin = 0.04 * (high - low) or 0.1
    return low - margin, max(high, ends) + margin


def _below(points: Points, high: float) -> Points:
    """The curve from where it enters the picture; a curve that never does stays whole."""
    first = next((i for i, (_, y) in enumerate(points) if y <= high), 0)
    if first == 0:
        return points
    (x0, y0), (x1, y1) = points[first - 1], points[first]
    return [(x0 + (x1 - x0) * (y0 - high) / (y0 - y1), high), *points[first:]]


def _axes(drawing: Drawing, across: Scale, up: Scale, unit: str) -> None:
    levels = ticks(up.low, up.high, 5)
    for value, text in zip(levels, tick_texts(levels), strict=True):
        drawing.line(across.start, up(value), across.end, up(value), "grid")
        drawing.text(across.start - 6, up(value) + 4, text, "small", "end")
    for value in ticks(across.low, across.high, 5):
        anchor = "middle" if value < across.high * 0.97 else "end"
        drawing.text(across(value), up.start + 16, count_text(value), "small", anchor)
    drawing.text(across.end, up.start + 30, unit, "small", "end")


def _depth(look: Look) -> int:
    return {"faint": 0, "quiet": 1, "main": 3}.get(look.colour, 2)


def _description(panel: Panel, labels: Mapping[str, str], unit: str) -> str:
    ends = sorted((points[-1][1], labels.get(row, row)) for row, points in panel.curves.items())
    said = ", ".join(f"{label} {loss:.3f}" for loss, label in ends[:12])
    return f"{panel.title}: loss over {unit}. Last values: {said}."
