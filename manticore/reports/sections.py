"""The page's tables as plain values: what each cell says, for the template to set in type."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from manticore.reports.headline import best_component, hybrid_row
from manticore.reports.numbers import (
    DASH,
    bytes_text,
    count_text,
    length_text,
    loss_text,
    percent_text,
    power_text,
    seconds_text,
    signed_text,
    spread_text,
)
from manticore.reports.palette import Look, component_colour
from manticore.reports.records import Row, measured, sorted_rows
from manticore.reports.tables import best_cells, loss_columns, sd_of
from manticore.training.rates import divergences


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table."""

    text: str
    """The number as it is printed."""
    spread: str = ""
    """Its standard deviation, printed small."""
    best: bool = False
    """Whether it is the best of its column."""
    share: float | None = None
    """Length of a bar behind the number, from 0 to 1; None for no bar."""


def measure_cell(row: Mapping[str, Any], metric: str, best: float | None = None) -> Cell:
    """A measure of a row over seeds: its mean, its spread, and whether it is the best."""
    value = float(row["mean"][metric])
    return Cell(
        text=loss_text(value), spread=spread_text(row["sd"].get(metric)), best=value == best
    )


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a table: its name, its numbers."""

    label: str
    """What the line is about."""
    tag: str = ""
    """A word beneath the label."""
    note: str = ""
    """A sentence beneath the label."""
    colour: str = ""
    """Class of the colour mark before the label, empty for none."""
    main: bool = False
    """Whether the report is about this line."""
    cells: list[Cell] = field(default_factory=list)
    """The numbers, in the order of the header."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its header."""

    caption: str
    """One line above the table."""
    header: list[str]
    """Names of the columns, the first one that of the labels."""
    lines: list[Line]
    """The table's lines, top down."""


def loss_table(
    rows: Sequence[Row], kinds: Sequence[str], styles: Mapping[str, Look], caption: str
) -> Table:
    """The final table: every row, lowest mean loss first, the best of each column marked."""
    ordered, columns = sorted_rows(rows), loss_columns(kinds)
    best, main = best_cells(ordered, columns), hybrid_row(rows)
    # The caption names the seeds, unless some rows have fewer than others.
    uneven = len({row["seeds"] for row in rows}) > 1
    lines = []
    for row in ordered:
        cells = [_loss_cell(row, column, (row["id"], column) in best) for column in columns]
        cells.append(Cell(text=_against(row, main)))
        bits = (row.get("bits_per_byte") or {}).get("mean")
        cells.append(Cell(text=loss_text(bits)))
        rate = row.get("lr")
        cells.append(Cell(text=DASH if rate is None else f"{rate:g}"))
        if uneven:
            cells.append(Cell(text=str(row["seeds"])))
        lines.append(_line(row, styles, main, cells, tag=row["group"], note=row.get("note") or ""))
    header = ["model", *columns, "vs hybrid", "bits / byte", "rate", *(["seeds"] * uneven)]
    said = divergences(rows)
    caption = f"{caption}. {' '.join(said)}" if said else caption
    return Table(caption=caption, header=header, lines=lines)


def cost_table(rows: Sequence[Row], styles: Mapping[str, Look]) -> Table:
    """The cost ledger: what every row took to train and takes to run."""
    main = hybrid_row(rows)
    lengths = sorted({int(n) for row in rows for n in row.get("state_bytes") or {}})
    header = [
        "model", "tokens", "train FLOPs", "time", "parameters", "active",
        "FLOPs / token", *(f"state, {length_text(n)}" for n in lengths),
    ]  # fmt: skip
    lines = []
    for row in sorted_rows(rows):
        state = row.get("state_bytes") or {}
        texts = [
            count_text(row["tokens"]),
            power_text(row.get("train_flops")),
            seconds_text(row.get("seconds")),
            count_text(row["parameters"]),
            count_text(row.get("active_parameters")),
            count_text(row.get("inference_flops_per_token")),
            *(bytes_text(state.get(str(n))) for n in lengths),
        ]
        lines.append(_line(row, styles, main, [Cell(text=text) for text in texts]))
    return Table(
        caption="Tokens, compute, size and memory of every row", header=header, lines=lines
    )


def phase_table(phases: Sequence[Mapping[str, Any]]) -> Table:
    """Where the run's time went."""
    total = sum(phase.get("seconds") or 0.0 for phase in phases)
    lines = []
    for phase in phases:
        seconds = phase.get("seconds")
        share = seconds / total if seconds is not None and total > 0 else None
        cells = [
            Cell(text=seconds_text(seconds), share=share),
            Cell(text=count_text(phase.get("tokens"))),
            Cell(text=power_text(phase.get("flops"))),
        ]
        lines.append(Line(label=str(phase["name"]), cells=cells))
    header = ["phase", "time", "tokens", "FLOPs"]
    return Table(caption="Where the time of this run went", header=header, lines=lines)


def fit_table(hybrid: Mapping[str, Any]) -> Table | None:
    """How much of the variance each translator explains, one line per boundary."""
    fits = hybrid.get("fit") or []
    if not fits:
        return None
    names = [component["name"] for component in hybrid["components"]]
    pairs = sorted({(fit["source"], fit["target"]) for fit in fits})
    values = {(fit["boundary"], fit["source"], fit["target"]): fit["r2"] for fit in fits}
    lines = []
    for boundary in sorted({fit["boundary"] for fit in fits}):
        found = [values.get((boundary, source, target)) for source, target in pairs]
        cells = [Cell(text=loss_text(r2, 2), share=_clipped(r2)) for r2 in found]
        last = boundary == hybrid["num_blocks"] + 1
        lines.append(Line(label="heads" if last else f"block {boundary}", cells=cells))
    header = ["read by", *(f"{names[source]} → {names[target]}" for source, target in pairs)]
    caption = "R squared: 1 is a perfect translation, 0 no better than the mean"
    return Table(caption=caption, header=header, lines=lines)


def component_table(hybrid: Mapping[str, Any]) -> Table:
    """The models that went in."""
    keys = ("family", "d_model", "n_layers", "vocab_size", "parameters", "licence")
    lines = []
    for k, component in enumerate(hybrid["components"]):
        texts = [component.get(key) for key in keys]
        cells = [
            Cell(text=count_text(v) if isinstance(v, int | float) else str(v or DASH))
            for v in texts
        ]
        lines.append(Line(label=component["name"], colour=component_colour(k), cells=cells))
    header = ["component", "family", "width", "layers", "vocabulary", "parameters", "licence"]
    return Table(caption="The components", header=header, lines=lines)


def tiles(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """The few numbers that stand at the top: (what, number, remark)."""
    hybrid = hybrid_row(rows)
    if hybrid is None or not measured(hybrid["loss"]["mean"]):
        return []
    chosen: list[tuple[str, Row | None]] = [("hybrid", hybrid)]
    chosen.append(("best component", best_component(rows, hybrid)))
    ensembles = [row for row in sorted_rows(rows) if row["group"] == "ensemble"]
    chosen.append(("best ensemble", next(iter(ensembles), None)))
    shown = [(name, row) for name, row in chosen if row is not None]
    numbers = [
        (name, loss_text(row["loss"]["mean"]), "" if row is hybrid else _against(row, hybrid))
        for name, row in shown
    ]
    return [*numbers, ("fine-tuned on", count_text(hybrid["tokens"]), "tokens")]


def projector_sentence(hybrid: Mapping[str, Any]) -> str:
    """How much the translators cost, empty when it was not recorded."""
    count, share = hybrid.get("projector_parameters"), hybrid.get("projector_flops_share")
    if count is None or len(hybrid["components"]) == 1:
        return ""
    kind = "projectors" if hybrid["mixing"] == "shared" else "translators"
    cost = "" if share is None else f" and take {percent_text(share, 1)} of its FLOPs"
    return f"The hybrid's {kind} have {count_text(count)} parameters{cost}."


def _line(
    row: Row, styles: Mapping[str, Look], main: Row | None, cells: list[Cell],
    tag: str = "", note: str = "",
) -> Line:  # fmt: skip
    look = styles.get(row["id"])
    is_main = main is not None and row["id"] == main["id"]
    return Line(
        label=row["label"], tag=tag, note=note, cells=cells, main=is_main,
        colour=look.colour if look else "quiet",
    )  # fmt: skip


def _loss_cell(row: Row, column: str, best: bool) -> Cell:
    return Cell(
        text=loss_text(row["loss"][column]), spread=spread_text(sd_of(row, column)), best=best
    )


def _against(row: Row, main: Row | None) -> str:
    """How far a row's mean lies from the hybrid's."""
    if main is None or row["id"] == main["id"] or not measured(main["loss"]["mean"]):
        return DASH
    value = row["loss"]["mean"]
    return signed_text(value - main["loss"]["mean"] if measured(value) else None)


def _clipped(value: float | None) -> float | None:
    return None if value is None else min(max(float(value), 0.0), 1.0)
