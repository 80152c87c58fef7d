"""The board's tables as plain values, for HTML and Markdown alike."""

from __future__ import annotations

from collections.abc import Sequence

from manticore.evaluation.mad.score_types import ArchitectureScore, Estimate
from manticore.evaluation.mad.settings import BASELINES, SHORT
from manticore.reports.mad_published import Comparison, PublishedRow
from manticore.reports.numbers import DASH, count_text, power_text, seconds_text
from manticore.reports.sections import Cell, Line, Table


def score_table(scores: Sequence[ArchitectureScore], caption: str) -> Table:
    """Every architecture of one protocol, the best average first, in percent."""
    header = ["architecture", "average of 6", "average of 5", "normalised"]
    header += [SHORT[task] for task in BASELINES]
    columns = [[_estimates(one)[i] for one in scores] for i in range(len(header) - 1)]
    best = [max((e.mean for e in c if e and e.mean is not None), default=None) for c in columns]
    lines = []
    for one in scores:
        cells = [_cell(e, b) for e, b in zip(_estimates(one), best, strict=True)]
        lines.append(Line(label=one.name, cells=cells, note=_flaws(one), tag=_tag(one)))
    return Table(caption=caption, header=header, lines=lines)


def cost_table(scores: Sequence[ArchitectureScore]) -> Table:
    """What each architecture is made of, and what measuring it cost."""
    header = ["architecture", "parameters", "state", "FLOPs/token", "seeds", "trainings"]
    header += ["training FLOPs", "time", "exact match"]
    lines = [
        Line(
            label=one.name,
            cells=[
                Cell(text=count_text(one.costs["parameters"])),
                Cell(text=_state(one)),
                Cell(text=count_text(one.costs["flops_per_token"])),
                Cell(text=str(len(one.seeds))),
                Cell(text=count_text(one.trials)),
                Cell(text=power_text(one.training_flops)),
                Cell(text=seconds_text(one.seconds)),
                Cell(text=_percent(_mean_other(one, "exact_match"))),
            ],
        )
        for one in scores
    ]
    return Table(caption="Counted at vocabulary 16 and 128 tokens", header=header, lines=lines)


def published_table(scores: Sequence[ArchitectureScore], rows: Sequence[PublishedRow]) -> Table:
    """Published rows, and ours of the same kind before them."""
    header = ["model", "average of 6", "as printed", *(SHORT[task] for task in BASELINES)]
    lines, named = [], list(dict.fromkeys(row.architecture for row in rows))
    ours = {one.name: one for one in scores}
    for name in sorted(named, key=lambda n: (n is None, n not in ours, n or "")):
        if name in ours:
            estimates = _estimates(ours[name])
            cells = [_cell(estimates[0]), Cell(text=DASH), *map(_cell, estimates[3:])]
            lines.append(Line(label=name, tag="ours", cells=cells, main=True))
        lines += [_published_line(row) for row in rows if row.architecture == name]
    return Table(caption="In percent", header=header, lines=lines)


def rank_table(comparisons: Sequence[Comparison], caption: str) -> Table:
    """How alike ours and theirs rank the same architectures."""
    header = ["published numbers", "of", "architectures", "Spearman", "95 %", "Kendall", "p"]
    lines = []
    for one in comparisons:
        found = one.agreement
        numbers = [DASH] * 4
        if found is not None:
            interval = found.interval
            numbers = [
                f"{found.spearman:z.2f}",
                DASH if interval is None else f"{interval[0]:z.2f} to {interval[1]:z.2f}",
                f"{found.kendall:z.2f}",
                DASH if found.p_value is None else f"{found.p_value:.3f}",
            ]
        cells = [Cell(text=text) for text in (one.of, str(len(one.names)), *numbers)]
        lines.append(Line(label=one.source, cells=cells))
    return Table(caption=caption, header=header, lines=lines)


def markdown_of(table: Table) -> str:
    """A table as Markdown, the best of a column in bold."""
    lines = [table.header, ["---", *("---:" for _ in table.header[1:])]]
    for line in table.lines:
        label = f"{line.label} ({line.tag})" if line.tag else line.label
        lines.append([f"{label} [{line.note}]" if line.note else label, *map(_marked, line.cells)])
    return "\n".join(
        "| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines
    )


def text_of(table: Table) -> list[str]:
    """A table for a terminal."""
    rows = [table.header]
    for line in table.lines:
        label = f"{line.label} ({line.note})" if line.note else line.label
        rows.append([label, *(f"{cell.text} {cell.spread}".strip() for cell in line.cells)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.header))]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]


def _marked(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text} {cell.spread}".strip()


def _estimates(one: ArchitectureScore) -> list[Estimate | None]:
    tasks = [one.tasks[task].accuracy if task in one.tasks else None for task in BASELINES]
    return [one.average6, one.average5, one.normalised6, *tasks]


def _cell(estimate: Estimate | None, best: float | None = None) -> Cell:
    if estimate is None or estimate.mean is None:
        return Cell(text=DASH)
    spread = ""
    if estimate.interval is not None:
        spread = f"±{100 * (estimate.interval[1] - estimate.mean):.1f}"
    return Cell(text=_percent(estimate.mean), spread=spread, best=estimate.mean == best)


def _percent(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:z.1f}"


def _published_line(row: PublishedRow) -> Line:
    tasks = [Cell(text=_percent(row.tasks.get(task))) for task in BASELINES]
    printed = f"{_percent(row.printed)} ({row.columns})"
    cells = [Cell(text=_percent(row.average6)), Cell(text=printed), *tasks]
    return Line(label=row.model, tag=row.source, note=row.where, cells=cells)


def _state(one: ArchitectureScore) -> str:
    state, fixed = one.costs["state"], one.costs["fixed_state"]
    grows = state is not None and fixed is not None and state > fixed
    return count_text(state) + (", grows" if grows else "")


def _tag(one: ArchitectureScore) -> str:
    return f"{len(one.seeds)} {'seed' if len(one.seeds) == 1 else 'seeds'}"


def _flaws(one: ArchitectureScore) -> str:
    """What a reader must know before believing a row."""
    said = []
    if one.missing:
        said.append(f"{len(one.missing)} trainings missing")
    if one.diverged:
        said.append(f"{len(one.diverged)} trainings diverged")
    return ", ".join(said)


def _mean_other(one: ArchitectureScore, key: str) -> float | None:
    values = [task.others.get(key) for task in one.tasks.values()]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
