"""The picture of `conversion`: cost of training, of a token, and of the cache, by length."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from manticore.reports.palette import DASHES, NUM_COLOURS
from manticore.reports.svg import Drawing, Scale, path_of

WIDTH, HEIGHT, PANEL, GAP = 912.0, 420.0, 236.0, 68.0
TOP, BOTTOM = 40.0, 270.0
STYLE = """
:root { color-scheme: light dark; --ink: #1b1d22; --soft: #5b6069; --line: #e2e2dc;
 --c0: #2466ad; --c1: #ad6500; --c2: #14786a; --c3: #8148b3; --c4: #6b7414; --c5: #b0437f;
 --c6: #7a5a3a; --c7: #4d6372; --main: #b01f45; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e9ec; --soft: #a3a8b2; --line: #2e3139;
 --c0: #6fa9ea; --c1: #e3a04a; --c2: #55bfad; --c3: #b996ea; --c4: #bcc45c; --c5: #e48abb;
 --c6: #c8a27c; --c7: #9db3c2; --main: #ff7597; } }
svg { font: 12px system-ui, sans-serif; } text { fill: var(--soft); }
.ink { fill: var(--ink); font-weight: 600; } .grid { stroke: var(--line); }
.curve { fill: none; stroke-width: 1.75; stroke: var(--c); } .main { --c: var(--main); }
.curve.main { stroke-width: 2.5; }
"""

Curves = dict[str, list[tuple[float, float]]]


def draw(results: Mapping[str, Any]) -> str:
    """A standalone SVG file's text: three panels and a legend."""
    training: Curves = {
        name: [(float(n), us) for n, us in row["microseconds_per_token"].items()]
        for name, row in results["training"].items()
    }
    sizes = results["sizes"]
    contexts = {"short": sizes["short_context"], "quarter": sizes["long_context"] // 4}
    contexts["long"] = sizes["long_context"]
    decode, cache = (
        {
            row["name"]: [(float(n), row[key][kind] / unit) for kind, n in contexts.items()]
            for row in results["long_context"]
        }
        for key, unit in (("decode_milliseconds", 1.0), ("cache_bytes", 1024.0))
    )
    drawing = Drawing(WIDTH, HEIGHT, "Cost of converted models against attention, by length")
    panels = (
        ("training, microseconds per token", "length", training),
        ("one more token, milliseconds", "context", decode),
        ("cache, KiB", "context", cache),
    )
    looks = {name: _look(i) for i, name in enumerate(training)}
    for index, (title, across, curves) in enumerate(panels):
        _panel(drawing, 40 + index * (PANEL + GAP), title, across, curves, looks)
    _legend(drawing, looks)
    return (
        str(drawing.markup())
        .replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        .replace(">", f"><style>{STYLE}</style>", 1)
    )


def _look(index: int) -> tuple[str, str]:
    if index == 0:
        return "main", DASHES[0]
    nth = index - 1
    return f"c{nth % NUM_COLOURS}", DASHES[nth // NUM_COLOURS]


def _panel(
    drawing: Drawing,
    left: float,
    title: str,
    across_title: str,
    curves: Curves,
    looks: Mapping[str, tuple[str, str]],
) -> None:
    """Curves on two logarithmic axes."""
    xs = sorted({x for points in curves.values() for x, _ in points})
    ys = [y for points in curves.values() for _, y in points]
    across = Scale(math.log2(xs[0]), math.log2(xs[-1]), left, left + PANEL)
    low, high = math.floor(math.log2(min(ys))), math.ceil(math.log2(max(ys)))
    up = Scale(low, high, BOTTOM, TOP)
    drawing.text(left - 28, 16, title, "ink")
    for power in range(low, high + 1, max(1, (high - low) // 6)):
        drawing.line(left, up(power), left + PANEL, up(power), "grid")
        drawing.text(left - 5, up(power) + 4, f"{2.0**power:g}", anchor="end")
    for x in xs:
        drawing.text(across(math.log2(x)), BOTTOM + 17, f"{x:,.0f}", anchor="middle")
    drawing.text(left + PANEL, BOTTOM + 33, across_title, anchor="end")
    for name, points in reversed(curves.items()):  # attention is drawn last
        colour, dash = looks[name]
        line = [(across(math.log2(x)), up(math.log2(y))) for x, y in sorted(points)]
        drawing.add(
            "path", d=path_of(line), class_=f"{colour} curve", stroke_dasharray=dash,
            style=f"--c: var(--{colour})", title=name,
        )  # fmt: skip


def _legend(drawing: Drawing, looks: Mapping[str, tuple[str, str]]) -> None:
    for index, (name, (colour, dash)) in enumerate(looks.items()):
        x, y = 6 + (index % 4) * 222.0, BOTTOM + 64 + (index // 4) * 22.0
        drawing.add(
            "path", d=path_of([(x, y - 4), (x + 26, y - 4)]), class_=f"{colour} curve",
            stroke_dasharray=dash, style=f"--c: var(--{colour})",
        )  # fmt: skip
        drawing.text(x + 33, y, name)
