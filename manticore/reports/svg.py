"""A few lines of SVG: elements with escaped text, scales and ticks.

Figures are written by hand rather than plotted: colours come from the page's CSS variables, so
one drawing serves light and dark, and text keeps its size on a phone.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup, escape

# An average glyph of a wide system font, as a share of the font size.
GLYPH_WIDTH = 0.58


class Drawing:
    """An SVG picture that grows element by element."""

    def __init__(self, width: float, height: float, label: str) -> None:
        self.width = width
        self.height = height
        self.label = label
        self._parts: list[Markup] = []

    def add(self, tag: str, text: str = "", title: str = "", **attributes: object) -> None:
        """Add an element; `stroke_width=2` becomes stroke-width, `class_` becomes class."""
        written = Markup("").join(
            Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), _plain(value))
            for name, value in attributes.items()
        )
        inner = escape(text) + (Markup("<title>{}</title>").format(title) if title else "")
        self._parts.append(Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), written, inner))

    def text(self, x: float, y: float, text: str, class_: str = "", anchor: str = "start") -> None:
        """Add a line of text; `anchor` is start, middle or end."""
        self.add("text", text, x=x, y=y, class_=class_, text_anchor=anchor)

    def line(self, x1: float, y1: float, x2: float, y2: float, class_: str) -> None:
        """Add a straight line."""
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)

    def markup(self) -> Markup:
        """The picture as an element that scales down with its column and never up."""
        width, height = _plain(self.width), _plain(self.height)
        return Markup(
            '<svg viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" aria-label="{2}">{3}'
            "</svg>"
        ).format(width, height, self.label, Markup("").join(self._parts))


class Scale:
    """A straight map from numbers to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high = low, high if high > low else low + 1.0
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers between two bounds: multiples of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= wanted)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points: means of equal runs of neighbours, which also calms the noise."""
    if len(points) <= most:
        return list(points)
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    groups = [points[lo:hi] for lo, hi in pairwise(edges)]
    return [(_mean([p[0] for p in group]), _mean([p[1] for p in group])) for group in groups]


def path_of(points: Sequence[tuple[float, float]]) -> str:
    """The path through points, for the attribute `d`."""
    return "M" + "L".join(f"{_plain(x)} {_plain(y)}" for x, y in points)


def tick_texts(values: Sequence[float]) -> list[str]:
    """Ticks with as many digits as the finest of them needs."""
    texts = [f"{value:g}" for value in values]
    digits = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [f"{value:.{digits}f}" for value in values]


def text_width(text: str, size: float = 12) -> float:
    """About how wide a line of text will be."""
    return len(text) * GLYPH_WIDTH * size


def shorten(text: str, width: float, size: float = 12) -> str:
    """Text that fits into a width, cut with an ellipsis when it must be."""
    room = int(width / (GLYPH_WIDTH * size))
    return text if len(text) <= room else text[: max(room - 1, 1)].rstrip() + "…"


def first_that_fits(candidates: Sequence[str], width: float, size: float = 12) -> str:
    """The first text that fits into a width, else the last one, cut."""
    for text in candidates:
        if text_width(text, size) <= width:
            return text
    return shorten(candidates[-1], width, size)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _plain(value: object) -> str:
    """Numbers with two digits at most, so that equal inputs give equal bytes."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
