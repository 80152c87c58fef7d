"""The hybrid drawn as a picture: columns of blocks, translators between them, mixture bars.

Time runs down the page: tokens, embeddings, B rows of blocks, heads, next token. An arrow from
component j to component k before block b shows what k reads from j: the stronger its line, the
larger the effective weight w_bkj = softmax_j(log a_{b-1,j} + s_b [j = k]). In a `shared` hybrid
the blocks read from and write to one common stream, by their weight in the mixture.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from manticore.reports.effective_weights import Weights, effective_weights
from manticore.reports.numbers import count_text, percent_text
from manticore.reports.palette import component_colour
from manticore.reports.svg import Drawing, first_that_fits, shorten, text_width

# Rows of blocks beyond this many are drawn lower, so that 24 blocks still fit on a screen.
ROOMY_BLOCKS = 8
HEADER = 62.0


def draw_architecture(hybrid: Mapping[str, Any], width: float) -> Markup:
    """Draw a hybrid in the schema of `result.json`, `width` pixels wide."""
    return _Picture(hybrid, width).drawn()


def opacity(weight: float) -> float:
    """How strongly a weight is drawn: its square root, so that a tenth can still be seen."""
    return math.sqrt(weight)


class _Picture:
    """Lays out one drawing; every method adds one kind of thing."""

    def __init__(self, hybrid: Mapping[str, Any], width: float) -> None:
        self.hybrid = hybrid
        self.components = hybrid["components"]
        self.num_blocks = hybrid["num_blocks"]
        self.mixture = hybrid["mixture"]
        self.embed_row = hybrid.get("embed_mixture") or self.mixture[0]
        self.head_row = hybrid.get("head_mixture") or self.mixture[-1]
        self.loyalty = hybrid.get("loyalty") or [None] * (self.num_blocks + 1)
        roomy = self.num_blocks <= ROOMY_BLOCKS
        self.box_height = 32.0 if roomy else 20.0
        self.gap = 46.0 if roomy else 26.0
        self.bar_width = 120.0 if width > 500 else 44.0
        self.left = 76.0 if width > 500 else 0.0
        self.column = (width - self.left - self.bar_width - 20) / len(self.components)
        self.box_width = min(self.column * 0.84, 210.0)
        rows = self.num_blocks + 2
        self.top = HEADER + 12.0
        end = self.top + rows * self.box_height + (rows - 1) * self.gap
        self.drawing = Drawing(width, end + 96, self._description())
        self.end = end

    def drawn(self) -> Markup:
        self._headers()
        for level in range(self.num_blocks + 1):
            if self.hybrid["mixing"] == "shared":
                self._bus(level)
            else:
                self._translators(level)
        for level in range(self.num_blocks + 2):
            self._level(level)
        self._finish()
        return self.drawing.markup()

    def _description(self) -> str:
        parts = [f"{c['name']} ({c['family']}, {c['n_layers']} layers)" for c in self.components]
        rows = "; ".join(
            f"block {b + 1}: {' / '.join(percent_text(w) for w in row)}"
            for b, row in enumerate(self.mixture)
        )
        return (
            f"Architecture: {', '.join(parts)} in {self.num_blocks} blocks, "
            f"{self.hybrid['mixing']} mixing. Mixture {rows}."
        )

    def _x(self, k: int) -> float:
        return self.left + (k + 0.5) * self.column

    def _y(self, level: int) -> float:
        """Top of a row of boxes: 0 embeddings, 1..B blocks, B+1 heads."""
        return self.top + level * (self.box_height + self.gap)

    def _row(self, level: int) -> Weights:
        """The mixture that stands at a row of boxes."""
        return [self.embed_row, *self.mixture, self.head_row][level]

    def _headers(self) -> None:
        for k, part in enumerate(self.components):
            x, room = self._x(k), self.column - 6
            size = f"{count_text(part['parameters'])} parameters"
            shape = f"d {part['d_model']} · {part['n_layers']} layers"
            # Bold letters are wider: measured as if they were a size larger.
            large = text_width(part["name"], 15.5) <= room
            name = part["name"] if large else shorten(part["name"], room, 13.5)
            self.drawing.text(x, 16, name, "name" if large else "ink strong", "middle")
            facts = [f"{part['family']} · {shape}", f"d {part['d_model']}"]
            lines = [part["family"], first_that_fits([shape, facts[1]], room)]
            if text_width(facts[0]) <= room:
                lines = [facts[0], size]
            for i, line in enumerate(lines):
                self.drawing.text(x, 34 + 16 * i, shorten(line, room), "soft", "middle")
        middle = self.drawing.width - self.bar_width / 2
        self.drawing.text(middle, 50, "mixture", "soft", "middle")

    def _translators(self, level: int) -> None:
        reads = effective_weights(self._row(level), self.loyalty[level])
        spread = min(14.0, self.box_width / (len(reads) + 1))
        for k, row in enumerate(reads):
            for j, weight in enumerate(row):
                if weight > 0:
                    start = self._x(j) + (k - j) * spread
                    end = self._x(k) + (j - k) * spread
                    self._arrow(level, (start, end), weight, (j, k))

    def _arrow(
        self, level: int, ends: tuple[float, float], weight: float, pair: tuple[int, int]
    ) -> None:
        top, tip = self._y(level) + self.box_height + 1, self._y(level + 1) - 1.5
        (x0, x1), (j, k) = ends, pair
        bend = (tip - top) * 0.55
        names = f"{self.components[j]['name']} → {self.components[k]['name']}"
        what = "own stream" if j == k else "translator"
        look: dict[str, Any] = {
            "class_": f"{component_colour(j)} arrow",
            "opacity": opacity(weight),
            "title": f"{what} {names}: weight {weight:.2f}",
        }
        path = f"M{x0:.1f} {top:.1f}C{x0:.1f} {top + bend:.1f} {x1:.1f} {tip - bend:.1f} "
        self.drawing.add("path", d=f"{path}{x1:.1f} {tip - 5:.1f}", stroke_width=1 + weight, **look)
        head = f"M{x1:.1f} {tip:.1f}l-3.5 -6.5h7z"
        look["class_"] = f"{component_colour(j)} tip"
        self.drawing.add("path", d=head, **look)

    def _bus(self, level: int) -> None:
        """The common stream between two rows of boxes, and its links up and down."""
        middle = self._y(level) + self.box_height + self.gap / 2
        first, last = self._x(0) - self.box_width / 2, self._x(len(self.components) - 1)
        self.drawing.add(
            "rect", x=first, y=middle - 3, width=last + self.box_width / 2 - first, height=6, rx=3,
            class_="bus", title=f"shared stream h{level}",
        )  # fmt: skip
        for k in range(len(self.components)):
            above, below = self._row(level)[k], self._row(level + 1)[k]
            for weight, y0, y1 in (
                (above, self._y(level) + self.box_height, middle - 3),
                (below, middle + 3, self._y(level + 1)),
            ):
                if weight > 0:
                    self.drawing.add(
                        "path", d=f"M{self._x(k):.1f} {y0:.1f}V{y1:.1f}", stroke_width=1 + weight,
                        class_=f"{component_colour(k)} arrow", opacity=opacity(weight),
                    )  # fmt: skip

    def _level(self, level: int) -> None:
        y, row = self._y(level), self._row(level)
        baseline = y + self.box_height / 2 + 4
        if self.left:
            names = ["embed", *(f"block {b + 1}" for b in range(self.num_blocks)), "heads"]
            self.drawing.text(0, baseline, names[level], "soft")
        for k, weight in enumerate(row):
            self._box(k, y, weight, self._box_names(level, k))
        self._bar(y, row)

    def _box_names(self, level: int, k: int) -> list[str]:
        if level == 0:
            return ["embeddings", "embed"]
        if level == self.num_blocks + 1:
            return ["head"]
        low, high = self.hybrid["partition"][k][level - 1]
        one = high - low == 1
        number = f"{low + 1}" if one else f"{low + 1}\u2013{high}"
        return [f"layer {number}" if one else f"layers {number}", number]

    def _box(self, k: int, y: float, weight: float, names: Sequence[str]) -> None:
        x = self._x(k) - self.box_width / 2
        state = "box" if weight > 0 else "box skipped"
        self.drawing.add(
            "rect", x=x, y=y, width=self.box_width, height=self.box_height, rx=6,
            class_=f"{component_colour(k)} {state}",
        )  # fmt: skip
        baseline = y + self.box_height / 2 + 4
        share = percent_text(weight) if weight > 0 else "skipped"
        for name in names:
            # Room for two digits, so that a whole row of boxes shows its shares or none does.
            widest = share if weight == 0 else "99 %"
            if text_width(f"{name} {widest}") + 18 <= self.box_width:
                self.drawing.text(x + 8, baseline, name, "ink")
                self.drawing.text(x + self.box_width - 8, baseline, share, "soft", "end")
                return
        name = first_that_fits(names, self.box_width - 8)
        self.drawing.text(self._x(k), baseline, name, "ink", "middle")

    def _bar(self, y: float, row: Weights) -> None:
        """The mixture at a row of boxes, as one bar cut into its shares."""
        x = self.drawing.width - self.bar_width
        height = min(self.box_height, 12.0)
        top = y + (self.box_height - height) / 2
        for k, weight in enumerate(row):
            wide = weight * self.bar_width
            if wide > 0:
                name = f"{self.components[k]['name']}: {percent_text(weight, 1)}"
                self.drawing.add(
                    "rect", x=x, y=top, width=max(wide - 1, 0.5), height=height,
                    class_=f"{component_colour(k)} solid", title=name,
                )  # fmt: skip
            x += wide

    def _finish(self) -> None:
        """What happens behind the heads: mixed, perhaps routed, one prediction."""
        count = len(self.components)
        left = self._x(0) - self.box_width / 2
        right = self._x(count - 1) + self.box_width / 2
        y = self.end + 26
        for k in range(count):
            self._into_router(k, y)
        routed = bool(self.hybrid.get("router")) and count > 1
        self.drawing.add(
            "rect", x=left, y=y, width=right - left, height=30, rx=15, class_="box plain"
        )
        texts = ["router: weighs the heads for every token", "router, per token", "router"]
        if not routed:
            texts = ["heads added, by the mixture" if count > 1 else "logits", "sum"]
        middle = (left + right) / 2
        text = first_that_fits(texts, right - left - 20)
        self.drawing.text(middle, y + 19, text, "ink", "middle")
        self.drawing.add(
            "path", d=f"M{middle:.1f} {y + 30:.1f}v9", class_="arrow", stroke_width=1.5
        )
        self.drawing.text(middle, y + 56, "next token", "soft", "middle")

    def _into_router(self, k: int, y: float) -> None:
        weight = self.head_row[k]
        if weight > 0:
            self.drawing.add(
                "path", d=f"M{self._x(k):.1f} {self.end:.1f}V{y:.1f}", stroke_width=1 + weight,
                class_=f"{component_colour(k)} arrow", opacity=opacity(weight),
            )  # fmt: skip
