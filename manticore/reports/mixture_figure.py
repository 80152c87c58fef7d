"""The mixture over time: one small panel per block, shares stacked to one."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from manticore.reports.numbers import count_text, percent_text
from manticore.reports.palette import component_colour
from manticore.reports.svg import Drawing, Scale, path_of, text_width, thinned

WIDTH, HEIGHT = 158.0, 108.0
LEFT, TOP, BOTTOM = 1.0, 20.0, 18.0
MOST_POINTS = 120

Path = list[tuple[float, list[float]]]


def mixture_paths(metrics: Sequence[Mapping[str, Any]], row: str) -> dict[str, Path]:
    """The mixture's way through the search of one row: name of a panel -> (step, weights)."""
    paths: dict[str, Path] = {}
    for record in metrics:
        of_row = record.get("stage") == "search" and record.get("row", "hybrid") == row
        if not of_row or "step" not in record:
            continue
        parts = {"Embeddings": record.get("embed"), "Heads": record.get("head")}
        blocks = {f"Block {b + 1}": w for b, w in enumerate(record.get("mixture") or [])}
        for name, weights in {**blocks, **parts}.items():
            if weights:
                paths.setdefault(name, []).append((float(record["step"]), list(weights)))
    order = sorted(paths, key=lambda name: (name == "Heads") - (name == "Embeddings"))
    return {name: paths[name] for name in order}


def searched_rows(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows whose mixture was searched, in the order of the records."""
    found = [m.get("row", "hybrid") for m in metrics if m.get("stage") == "search"]
    return list(dict.fromkeys(found))


def draw_mixture_panel(name: str, path: Path, components: Sequence[str]) -> Markup:
    """Draw one panel: time to the right, the shares of the components stacked."""
    if len(path) == 1:
        path = [path[0], (path[0][0] + 1, path[0][1])]
    final = " / ".join(f"{100 * weight:.0f}" for weight in path[-1][1])
    shares = ", ".join(
        f"{component} {percent_text(first)} to {percent_text(last)}"
        for component, first, last in zip(components, path[0][1], path[-1][1], strict=False)
    )
    drawing = Drawing(WIDTH, HEIGHT, f"{name}: mixture over the search, {shares}.")
    drawing.text(LEFT, 12, name, "ink strong")
    if text_width(name + final) + 12 <= WIDTH:
        drawing.text(WIDTH - 1, 12, final, "soft", "end")
    across = Scale(path[0][0], path[-1][0], LEFT, WIDTH - 1)
    up = Scale(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    for k in range(len(path[0][1])):
        _band(drawing, path, k, across, up)
    drawing.line(LEFT, up(0.5), WIDTH - 1, up(0.5), "half")
    drawing.text(LEFT, HEIGHT - 4, f"step {count_text(path[0][0])}", "small")
    drawing.text(WIDTH - 1, HEIGHT - 4, count_text(path[-1][0]), "small", "end")
    return drawing.markup()


def _band(drawing: Drawing, path: Path, k: int, across: Scale, up: Scale) -> None:
    """The share of component k, on top of those before it."""
    lower = _edge(path, k)
    upper = _edge(path, k + 1)
    outline = [(across(x), up(y)) for x, y in [*upper, *reversed(lower)]]
    drawing.add("path", d=path_of(outline) + "Z", class_=f"{component_colour(k)} area")


def _edge(path: Path, count: int) -> list[tuple[float, float]]:
    """The summed share of the first `count` components; both ends stay where they are."""
    points = [(step, sum(weights[:count])) for step, weights in path]
    return [points[0], *thinned(points[1:-1], MOST_POINTS), points[-1]]
