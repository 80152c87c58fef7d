"""The board's heat map: architectures down, settings across, a square of colour for each score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from manticore.evaluation.mad.score_types import ArchitectureScore
from manticore.evaluation.mad.settings import BASELINES, SHORT
from manticore.reports.numbers import DASH
from manticore.reports.svg import Drawing, shorten

CELL, GAP, ROW = 34.0, 10.0, 24.0
NAMES, HEADS = 190.0, 128.0


def draw_heatmap(scores: Sequence[ArchitectureScore]) -> Markup:
    """Draw the accuracies of every setting, in percent; the colour grows with the number.

    Args:
        scores: of one protocol, in the order of the rows.
    """
    columns = _columns(scores)
    places = _places([task for task, _ in columns])
    width = NAMES + (places[-1] + CELL if places else 0.0) + 60  # for the last slanted heading
    drawing = Drawing(width, HEADS + ROW * len(scores) + 4, _description(scores))
    for (task, label), x in zip(columns, places, strict=True):
        _head(drawing, label.partition(" ")[2], SHORT[task], NAMES + x)
    for i, one in enumerate(scores):
        y = HEADS + ROW * i
        drawing.text(0, y + 16, shorten(one.name, NAMES - 10), "ink")
        for (task, label), x in zip(columns, places, strict=True):
            found = one.tasks.get(task)
            estimate = found.settings.get(label) if found else None
            _square(drawing, one.name, label, estimate.mean if estimate else None, NAMES + x, y)
    return drawing.markup()


def _columns(scores: Sequence[ArchitectureScore]) -> list[tuple[str, str]]:
    """(task, setting) of every column, tasks in their usual order."""
    found = dict.fromkeys(
        (task, label) for one in scores for task, t in one.tasks.items() for label in t.settings
    )
    order = list(BASELINES)
    return sorted(found, key=lambda column: order.index(column[0]))


def _places(tasks: Sequence[str]) -> list[float]:
    """Where columns start, with a gap between tasks."""
    places, x = [], 0.0
    for i, task in enumerate(tasks):
        if i:
            x += CELL + (GAP if task != tasks[i - 1] else 2.0)
        places.append(x)
    return places


def _head(drawing: Drawing, name: str, short: str, x: float) -> None:
    place = f"translate({x + CELL / 2 + 4:.1f} {HEADS - 22:.1f}) rotate(-60)"
    drawing.add("text", shorten(name, HEADS - 24, 11), transform=place, class_="small")
    drawing.text(x + CELL / 2, HEADS - 6, short, "ink strong small", "middle")


def _square(
    drawing: Drawing, row: str, label: str, value: float | None, x: float, y: float
) -> None:
    text = DASH if value is None else f"{100 * value:.0f}"
    attributes: dict[str, Any] = {"x": x, "y": y + 1, "width": CELL, "height": ROW - 2, "rx": 3.0}
    # The number stands in the square as well: colour never carries meaning alone.
    title = f"{row}, {label}: {'not measured' if value is None else text + ' %'}"
    opacity = 0.0 if value is None else round(0.04 + 0.72 * value, 2)
    drawing.add("rect", **attributes, class_="c0 heat", fill_opacity=opacity, title=title)
    drawing.text(x + CELL / 2, y + 16, text, "ink small", "middle")


def _description(scores: Sequence[ArchitectureScore]) -> str:
    rows = [
        f"{one.name}: "
        + ", ".join(
            f"{task} {100 * t.accuracy.mean:.0f}"
            for task, t in one.tasks.items()
            if t.accuracy.mean is not None
        )
        for one in scores
    ]
    return f"Test accuracy in percent. {'; '.join(rows)}."
