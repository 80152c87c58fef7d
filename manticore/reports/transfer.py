"""The table of a ladder of students, for a terminal, as Markdown and as a page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manticore.conversion.goals import tokens_to
from manticore.reports.mad_tables import markdown_of, text_of
from manticore.reports.numbers import (
    DASH,
    count_text,
    loss_text,
    percent_text,
    power_text,
)
from manticore.reports.records import read_json
from manticore.reports.rendering import render
from manticore.reports.sections import Cell, Line, Table, measure_cell
from manticore.reports.transfer_costs import cost_legend, cost_tables, draw_costs
from manticore.reports.transfer_figures import draw_ladder, draw_placement, legend
from manticore.runs import write_text
from manticore.training.rates import divergences

HEADER = [
    "student", "loss", "at start", "bits per byte", "at equal FLOPs", "MQAR", "induction",
    "tokens", "FLOPs", "of which teacher", "inherited", "rate", "seeds",
]  # fmt: skip


def transfer_table(result: Mapping[str, Any]) -> Table:
    """Every row in the recipe's order, and the teacher."""
    rows, budget = result["rows"], equal_flops(result["rows"])
    best = min(row["mean"]["loss"] for row in rows)
    lines = [
        Line(
            label=row["label"],
            cells=[
                measure_cell(row, "loss", best),
                measure_cell(row, "start"),
                measure_cell(row, "bits_per_byte"),
                Cell(text=loss_text(_mean([at_flops(c, budget) for c in row["curves"]]))),
                Cell(text=percent_text(row["mean"]["mqar_accuracy"], 1)),
                Cell(text=percent_text(row["mean"]["induction_accuracy"], 1)),
                Cell(text=count_text(row["tokens"])),
                Cell(text=power_text(row["flops"])),
                Cell(text=power_text(row["teacher_flops"]) if row["teacher_flops"] else DASH),
                Cell(text=percent_text(row["share_inherited"])),
                Cell(text=f"{row['lr']:.3g}"),
                Cell(text=str(len(row["seeds"]))),
            ],
        )
        for row in rows
    ]
    return Table(caption=caption(result), header=HEADER, lines=[*lines, _teacher(result)])


def _teacher(result: Mapping[str, Any]) -> Line:
    teacher = result["teacher"]
    cells = [
        Cell(text=loss_text(teacher["loss"])),
        Cell(text=loss_text(teacher["validation"])),
        Cell(text=loss_text(teacher["bits_per_byte"])),
        Cell(text=DASH),
        Cell(text=percent_text(teacher["mqar_accuracy"], 1)),
        Cell(text=percent_text(teacher["induction_accuracy"], 1)),
    ]
    rest = [Cell(text=DASH)] * (len(HEADER) - 1 - len(cells))
    return Line(label="the teacher itself", cells=cells + rest)


def caption(result: Mapping[str, Any]) -> str:
    """What the numbers are."""
    seeds = max(len(row["seeds"]) for row in result["rows"])
    spread = ", ± is the sample standard deviation over seeds" if seeds > 1 else ", one seed"
    text = (
        f"Loss in nats per token on the test split{spread}. At start: validation loss after "
        "transfer and alignment, before training. At equal FLOPs: validation loss where a row has "
        f"spent {power_text(equal_flops(result['rows']), plain=True)} FLOPs, the teacher's "
        "included, its rate schedule still running. Tokens are those of all stages; the teacher's "
        "own pretraining is not counted."
    )
    return " ".join([text, *divergences(result["rows"])])


def goal_table(result: Mapping[str, Any]) -> Table:
    """Tokens of every row to the last loss of every scratch row."""
    rows = result["rows"]
    scratch = [row for row in rows if not row["share_inherited"]]
    lines = [
        Line(
            label=row["label"],
            cells=[Cell(text=_tokens_text(row, other)) for other in scratch],
        )
        for row in rows
    ]
    return Table(
        caption="Tokens, all stages, to the last validation loss of a row from scratch, mean over "
        "the seeds that reach it, by straight lines between two looks.",
        header=["student", *(row["label"] for row in scratch)],
        lines=lines,
    )


def _tokens_text(row: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    pairs = zip(row["curves"], other["curves"], strict=True)
    needed = [tokens_to(mine, theirs[-1]["loss"]) for mine, theirs in pairs]
    known = [value for value in needed if value is not None]
    if not known:
        return DASH
    some = "" if len(known) == len(needed) else f" ({len(known)} of {len(needed)} seeds)"
    return count_text(statistics.fmean(known)) + some


def equal_flops(rows: Sequence[Mapping[str, Any]]) -> float:
    """The budget that every row reaches."""
    return min(float(row["flops"]) for row in rows)


def at_flops(curve: Sequence[Mapping[str, float]], budget: float) -> float:
    """Loss of a curve at a budget, between two looks by a straight line."""
    before = curve[0]
    for point in curve:
        if point["flops"] >= budget:
            if point["flops"] == before["flops"]:
                return float(point["loss"])
            part = (budget - before["flops"]) / (point["flops"] - before["flops"])
            return before["loss"] + part * (point["loss"] - before["loss"])
        before = point
    return float(before["loss"])


def transfer_text(result: Mapping[str, Any]) -> list[str]:
    """The table for a terminal, with what the goals came to."""
    goals = [goal["sentence"] for goal in result["goals"]]
    return [*text_of(transfer_table(result)), *divergences(result["rows"]), *goals]


def transfer_markdown(result: Mapping[str, Any]) -> str:
    """The tables as Markdown, with captions and goals."""
    tables = [transfer_table(result), goal_table(result), *cost_tables(result)]
    parts = [text for t in tables if t.header[1:] for text in (markdown_of(t), t.caption)]
    parts.append("\n".join(f"- {goal['sentence']}" for goal in result["goals"]))
    return "\n\n".join(part for part in parts if part)


def write_transfer_report(record: str | Path, out: str | Path) -> None:
    """Write a ladder's result.json as one self-contained page."""
    result = read_json(Path(record))
    tables = [transfer_table(result), goal_table(result)]
    page = render(
        "transfer.html",
        name=result["name"],
        headline=headline(result),
        ladder=draw_ladder(result),
        placement=draw_placement(result),
        legend=legend(result),
        tables=[*(table for table in tables if table.header[1:]), plan_table(result)],
        cost_pictures=draw_costs(result),
        cost_legend=cost_legend(result),
        cost_tables=cost_tables(result),
        samples=samples_by_prompt(result),
        goals=result["goals"],
        command=result.get("command") or "",
    )
    write_text(out, page)


def plan_table(result: Mapping[str, Any]) -> Table:
    """How many numbers of each row are copied, mapped and so on."""
    hows = ("copied", "mapped", "repeated", "initialised", "dropped")
    lines = []
    for row in result["rows"]:
        totals = result["plans"][row["id"]]["by_how"]
        cells = [Cell(text=count_text(totals[h]["numbers"]) if h in totals else DASH) for h in hows]
        lines.append(Line(label=row["label"], cells=cells))
    return Table(
        caption="Numbers of the students by what became of them; dropped are numbers of the "
        "teacher. The command manticore transfer show lists every tensor.",
        header=["student", *hows],
        lines=lines,
    )


def samples_by_prompt(result: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each prompt with its continuations: (who, text), the teacher first."""
    labels = {"teacher": "the teacher", **{row["id"]: row["label"] for row in result["rows"]}}
    grouped: dict[str, list[tuple[str, str]]] = {}
    for one in result["samples"]:
        grouped.setdefault(one["prompt"], []).append((labels[one["row"]], one["text"]))
    return list(grouped.items())


def headline(result: Mapping[str, Any]) -> str:
    """One sentence: the best row beside the teacher, and what the goals came to."""
    best = min(result["rows"], key=lambda row: row["mean"]["loss"])
    loss, teacher = best["mean"]["loss"], result["teacher"]["loss"]
    text = f"{best['label']} is best: {loss_text(loss)} nats, the teacher has {loss_text(teacher)}."
    goals = result["goals"]
    met = sum(bool(goal["met"]) for goal in goals)
    return text + (f" {met} of {len(goals)} goals met." if goals else "")


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan
