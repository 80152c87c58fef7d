"""The final table as text: for the terminal, and as Markdown for cards and READMEs.

Every row is shown, lowest mean loss first, ensembles among the rest. The best number of each
column is marked; rows that agree in every printed digit share the mark.
"""

from collections.abc import Sequence

from manticore.reports.numbers import (
    DASH,
    count_text,
    loss_text,
    power_text,
    seconds_text,
    spread_text,
)
from manticore.reports.records import Row, measured, sorted_rows
from manticore.training.rates import divergences

DIGITS = 3


def text_table(rows: Sequence[Row], kinds: Sequence[str]) -> str:
    """The table for a terminal: losses in nats per token, `*` marks the best of a column."""
    ordered = sorted_rows(rows)
    columns = loss_columns(kinds)
    best = best_cells(ordered, columns)
    header = ["nats per token", *columns, "tokens", "FLOPs", "time"]
    lines = [header]
    for row in ordered:
        losses = [_plain_loss(row, column, (row["id"], column) in best) for column in columns]
        lines.append([_one_line(row["label"]), *losses, *_cost_cells(row)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    printed = ["  ".join(_justify(line, widths)).rstrip() for line in lines]
    seeds = sorted({row["seeds"] for row in ordered})
    footer = f"* best of the column; {_seeds_note(seeds)}"
    body = [printed[0], "─" * max(map(len, printed)), *printed[1:], footer]
    return "\n".join([*body, *divergences(ordered)])


def markdown_table(rows: Sequence[Row], kinds: Sequence[str]) -> str:
    """The table as Markdown: losses in nats per token, the best of a column in bold."""
    ordered = sorted_rows(rows)
    columns = loss_columns(kinds)
    best = best_cells(ordered, columns)
    lines = [
        ["model", *columns, "bits per byte", "tokens", "parameters", "training FLOPs", "seeds"],
        ["---", *("---:" for _ in columns), "---:", "---:", "---:", "---:", "---:"],
    ]
    for row in ordered:
        losses = []
        for column in columns:
            mark = "**" if (row["id"], column) in best else ""
            spread = spread_text(sd_of(row, column), DIGITS)
            losses.append(f"{mark}{loss_text(row['loss'][column], DIGITS)}{mark} {spread}".strip())
        bits = (row.get("bits_per_byte") or {}).get("mean")
        cost = [count_text(row["tokens"]), count_text(row["parameters"])]
        flops = power_text(row.get("train_flops"))
        lines.append(
            [_one_line(row["label"]), *losses, loss_text(bits), *cost, flops, str(row["seeds"])]
        )
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def loss_columns(kinds: Sequence[str]) -> list[str]:
    """The keys of a loss in the order of the table: the mean, then each kind of text."""
    # With one kind of text the mean repeats it.
    return ["mean", *kinds] if len(kinds) != 1 else ["mean"]


def best_cells(rows: Sequence[Row], columns: Sequence[str]) -> set[tuple[str, str]]:
    """The (row id, column) pairs whose printed loss is the lowest of its column."""
    best = set()
    for column in columns:
        values = {
            row["id"]: round(row["loss"][column], DIGITS)
            for row in rows
            if measured(row["loss"][column])
        }
        lowest = min(values.values(), default=None)
        best |= {(name, column) for name, value in values.items() if value == lowest}
    return best


def sd_of(row: Row, column: str, key: str = "loss") -> float | None:
    """The spread over seeds of one number of a row, None when there was one seed."""
    return (row.get(f"{key}_sd") or {}).get(column)


def _plain_loss(row: Row, column: str, is_best: bool) -> str:
    mark = "*" if is_best else ""
    text = f"{mark}{loss_text(row['loss'][column], DIGITS)}"
    return f"{text} {spread_text(sd_of(row, column), DIGITS)}".rstrip()


def _cost_cells(row: Row) -> list[str]:
    flops = power_text(row.get("train_flops"), plain=True)
    return [count_text(row["tokens"]), flops, seconds_text(row.get("seconds"))]


def _seeds_note(seeds: Sequence[int]) -> str:
    if list(seeds) == [1]:
        return "one seed, so no spread"
    counts = DASH.join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))
    return f"{counts} seeds, ± is the sample standard deviation"


def _justify(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    first = line[0].ljust(widths[0])
    return [first, *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))]


def _one_line(text: str) -> str:
    return " ".join(str(text).split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
