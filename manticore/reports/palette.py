"""Which colour class a row or a component wears, the same in every figure of a page.

Colours are classes (`c0` to `c7`, `main`, `quiet`); the style sheet gives them values for light
and dark. Colour never carries meaning alone: figures also have labels, shapes and dashes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from manticore.reports.headline import hybrid_row
from manticore.reports.records import Row

NUM_COLOURS = 8
DASHES = ("none", "5 3", "2 2", "8 3 2 3")


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a row is drawn."""

    colour: str
    """Class that sets the colour."""
    dash: str = "none"
    """Dash pattern of its line."""


def component_colour(index: int) -> str:
    """The colour class of component `index`."""
    return f"c{index % NUM_COLOURS}"


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """A look for every row: the hybrid and each component in colour, the rest in grey."""
    main = hybrid_row(rows)
    styles: dict[str, Look] = {}
    seen: dict[str, int] = {}
    for row in rows:
        colour = "quiet"
        if main is not None and row["id"] == main["id"]:
            colour = "main"
        elif row["group"] == "component":
            colour = component_colour(_component_index(row["id"], len(seen)))
        # Rows that share a colour get different dashes.
        nth = seen.get(colour, 0)
        seen[colour] = nth + 1
        styles[row["id"]] = Look(colour=colour, dash=DASHES[nth % len(DASHES)])
    return styles


def _component_index(row_id: str, default: int) -> int:
    """The component that a row's id names: 1 for `component-1` and `component-1-long`."""
    found = re.match(r"component[-_](\d+)", row_id)
    return int(found.group(1)) if found else default
