"""What a token costs at which context: the teacher and every layout of a transfer's students."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from manticore.reports.numbers import bytes_text, count_text, length_text
from manticore.reports.palette import DASHES, NUM_COLOURS, Look, component_colour
from manticore.reports.sections import Cell, Line, Table
from manticore.reports.svg import Drawing, Scale, path_of

Text = Callable[[float | None], str]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420.0, 250.0, 62.0, 14.0, 30.0, 36.0
# Key, title, how a number is written, and the factor between two lines of the axis.
MEASURES = (
    ("flops_per_token", "FLOPs per token", count_text, 10),
    ("cache_bytes", "Cache of one sequence", bytes_text, 16),
)
CAPTIONS = {
    "flops_per_token": "FLOPs per token of a forward pass over so many tokens, by the formulas of "
    "the layers. A step of training is about three times that.",
    "cache_bytes": "What one sequence of so many tokens holds while it is generated: keys and "
    "values in bfloat16, states in float32.",
}


def cost_tables(result: Mapping[str, Any]) -> list[Table]:
    """FLOPs and cache of every layout at every length; none for a record without them."""
    costs = result.get("costs")
    if not costs:
        return []
    header = ["layers", *(f"{length_text(n)} tokens" for n in costs["lengths"])]
    labels = layout_labels(result)
    return [
        Table(
            caption=CAPTIONS[key],
            header=header,
            lines=[
                Line(label=label, cells=[Cell(text=text(value)) for value in layout[key]])
                for label, layout in zip(labels, costs["layouts"], strict=True)
            ],
        )
        for key, _, text, _ in MEASURES
    ]


def draw_costs(result: Mapping[str, Any]) -> list[Markup]:
    """FLOPs and cache over the length, both on logarithmic axes."""
    costs = result.get("costs")
    if not costs:
        return []
    return [_draw(result, *measure) for measure in MEASURES]


def cost_legend(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(colour, dash, label) of every layout."""
    if not result.get("costs"):
        return []
    labels = layout_labels(result)
    styles = _looks(len(labels))
    return [(s.colour, s.dash, label) for s, label in zip(styles, labels, strict=True)]


def layout_labels(result: Mapping[str, Any]) -> list[str]:
    """The mixers of every layout in words; where two read alike, with a student that has it."""
    names = {row["id"]: row["label"] for row in result["rows"]}
    layouts = result["costs"]["layouts"]
    said = [_mixers(layout["layers"]) for layout in layouts]
    labels = []
    for layout, text in zip(layouts, said, strict=True):
        if "teacher" in layout["rows"]:
            labels.append(f"the teacher: {text}")
        else:
            labels.append(f"{text} ({names[layout['rows'][0]]})" if said.count(text) > 1 else text)
    return labels


def _mixers(layers: Sequence[str]) -> str:
    """All mixers of a layout, and where attention stayed beside others."""
    kept = [str(index) for index, name in enumerate(layers) if name == "attention"]
    others = [name for name in dict.fromkeys(layers) if name != "attention"]
    if not others or not kept:
        return " and ".join(others or ["attention"])
    where = "layer" if len(kept) == 1 else "layers"
    return f"{' and '.join(others)}, attention in {where} {', '.join(kept)}"


def _looks(count: int) -> list[Look]:
    """The teacher quiet, as in the ladder, and a colour for each of the others."""
    others = [
        Look(colour=component_colour(i), dash=DASHES[i // NUM_COLOURS % len(DASHES)])
        for i in range(count - 1)
    ]
    return [Look(colour="quiet", dash="2 2"), *others]


def _draw(result: Mapping[str, Any], key: str, title: str, text: Text, factor: int) -> Markup:
    lengths, labels = result["costs"]["lengths"], layout_labels(result)
    curves = dict(zip(labels, (one[key] for one in result["costs"]["layouts"]), strict=True))
    ends = ", ".join(f"{label} {text(values[-1])}" for label, values in curves.items())
    drawing = Drawing(WIDTH, HEIGHT, f"{title} at {lengths[-1]:,} tokens: {ends}")
    drawing.text(0, 14, title, "ink strong")
    across = Scale(math.log2(lengths[0]), math.log2(lengths[-1]), LEFT, WIDTH - RIGHT)
    low, high = _powers([value for values in curves.values() for value in values], factor)
    up = Scale(low, high, HEIGHT - BOTTOM, TOP)
    for power in range(low, high + 1):
        drawing.line(across.start, up(power), across.end, up(power), "grid")
        drawing.text(across.start - 6, up(power) + 4, text(factor**power), "small", "end")
    for n in lengths:
        drawing.text(across(math.log2(n)), up.start + 18, length_text(n), "small", "middle")
    for look, (label, values) in zip(_looks(len(curves)), curves.items(), strict=True):
        pairs = zip(lengths, values, strict=True)
        drawing.add(
            "path", d=path_of([(across(math.log2(n)), up(math.log(v, factor))) for n, v in pairs]),
            class_=f"{look.colour} curve", stroke_dasharray=look.dash, title=label,
        )  # fmt: skip
    return drawing.markup()


def _powers(values: Sequence[float], factor: int) -> tuple[int, int]:
    """The powers of a factor around the values."""
    low = math.floor(math.log(min(values), factor))
    return low, max(math.ceil(math.log(max(values), factor)), low + 1)
