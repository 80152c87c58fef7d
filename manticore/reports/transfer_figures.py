"""Pictures of a transfer: the ladder of losses over tokens, and which layers are attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from manticore.reports.curves_figure import Panel, draw_curves
from manticore.reports.palette import DASHES, NUM_COLOURS, Look, component_colour
from manticore.reports.svg import Drawing, shorten

SIZES = ((760.0, 380.0), (342.0, 260.0))
"""Of the ladder, for wide pages and for phones."""
CELL, GAP, LABEL, LINE = 92.0, 4.0, 260.0, 26.0


def looks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Look]:
    """A colour and a dash for every row."""
    return {
        row["id"]: Look(
            colour=component_colour(index), dash=DASHES[index // NUM_COLOURS % len(DASHES)]
        )
        for index, row in enumerate(rows)
    }


def draw_ladder(result: Mapping[str, Any]) -> list[Markup]:
    """Validation loss over the student's tokens, the first seed of every row, in both sizes."""
    rows = result["rows"]
    curves = {
        row["id"]: [(float(p["tokens"]), float(p["loss"])) for p in row["curves"][0]]
        for row in rows
    }
    longest = max(points[-1][0] for points in curves.values())
    curves["teacher"] = [(x, float(result["teacher"]["validation"])) for x in (0.0, longest)]
    panel = Panel(title="Validation loss of the first seed", curves=curves)
    labels = {"teacher": "the teacher", **{row["id"]: row["label"] for row in rows}}
    styles = {**looks(rows), "teacher": Look(colour="quiet", dash="2 2")}
    return [draw_curves(panel, styles, labels, *size, unit="tokens") for size in SIZES]


def legend(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(colour, dash, label) of every curve."""
    styles = looks(result["rows"])
    rows = [(styles[r["id"]].colour, styles[r["id"]].dash, r["label"]) for r in result["rows"]]
    return [*rows, ("quiet", "2 2", "the teacher")]


def draw_placement(result: Mapping[str, Any]) -> Markup:
    """A row of boxes for each student: its layers, those that stay attention filled."""
    rows = result["rows"]
    n_layers = max(len(result["plans"][row["id"]]["layers"]) for row in rows)
    height = LINE * (len(rows) + 1)
    said = "; ".join(f"{r['label']}: {', '.join(result['plans'][r['id']]['layers'])}" for r in rows)
    drawing = Drawing(LABEL + n_layers * (CELL + GAP), height, f"Mixer of every layer. {said}")
    for layer in range(n_layers):
        drawing.text(LABEL + layer * (CELL + GAP), 14, f"layer {layer}", "small")
    for number, row in enumerate(rows, start=1):
        top = number * LINE
        drawing.text(0, top + 15, shorten(row["label"], LABEL - 10), "ink")
        for layer, mixer in enumerate(result["plans"][row["id"]]["layers"]):
            left = LABEL + layer * (CELL + GAP)
            kept = mixer == "attention"
            drawing.add(
                "rect", x=left, y=top, width=CELL, height=LINE - GAP, rx=3,
                class_="c0 kept" if kept else "faint mixer", title=f"layer {layer}: {mixer}",
            )  # fmt: skip
            text = shorten(mixer, CELL - 8, 11)
            drawing.text(left + 5, top + 15, text, "small inverse" if kept else "small")
    return drawing.markup()
