"""The table of a comparison of fine-tuning methods, for a terminal, as Markdown and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from manticore.config.adapter_recipe import HIGHER_IS_BETTER
from manticore.reports.front_figure import FrontPoint, draw_front
from manticore.reports.mad_tables import markdown_of, text_of
from manticore.reports.numbers import DASH, bytes_text, count_text, loss_text
from manticore.reports.records import read_json
from manticore.reports.rendering import render
from manticore.reports.sections import Cell, Line, Table, measure_cell
from manticore.runs import write_text
from manticore.training.rates import divergences

NAMES = {
    "loss": "nats",
    "accuracy": "accuracy",
    "matthews": "Matthews",
    "exact-match": "exact match",
    "bits-per-byte": "bits per byte",
}
COSTS = {
    "parameters": ("trained parameters", lambda value: count_text(round(value))),
    "memory_bytes": ("memory of a step", bytes_text),
    "step_seconds": ("time of a step", lambda value: f"{1000 * value:.0f} ms"),
}


def method_table(result: Mapping[str, Any]) -> Table:
    """Every method, the best of the first metric on top."""
    metrics = list(result["metrics"])
    rows = ordered_rows(result["rows"], metrics[0])
    best = {metric: _best(rows, metric) for metric in metrics}
    lines = [
        Line(
            label=row["label"],
            cells=[
                *(measure_cell(row, metric, best[metric]) for metric in metrics),
                Cell(text=count_text(row["parameters"])),
                Cell(text=bytes_text(row.get("memory_bytes"))),
                Cell(text=_milliseconds(row.get("step_seconds"))),
                Cell(text=f"{row['lr']:g}"),
                Cell(text=str(len(row["seeds"]))),
            ],
        )
        for row in rows
    ]
    if result.get("untouched"):
        cells = [Cell(text=loss_text(result["untouched"].get(metric))) for metric in metrics]
        lines.append(Line(label="before fine-tuning", cells=cells + [Cell(text=DASH)] * 5))
    header = ["method", *(NAMES[m] for m in metrics), "trained", "memory", "step", "rate", "seeds"]
    return Table(caption=caption(result), header=header, lines=lines)


def caption(result: Mapping[str, Any]) -> str:
    """What the numbers are."""
    seeds = max(len(row["seeds"]) for row in result["rows"])
    spread = ", ± is the sample standard deviation over seeds" if seeds > 1 else ", one seed"
    higher = [NAMES[metric] for metric in result["metrics"] if metric in HIGHER_IS_BETTER]
    better = f"higher is better for {' and '.join(higher)}" if higher else "lower is better"
    text = (
        f"Test split, {better}{spread}. Trained are the parameters that training changes. Memory "
        "is what a step keeps beside the frozen weights: saved activations, gradients and "
        "moments. A step is forward and backward, processor time. The rate is the learning rate "
        "that validation chose."
    )
    return " ".join([text, *divergences(result["rows"])])


def method_text(result: Mapping[str, Any]) -> list[str]:
    """The table for a terminal, with what the goals came to."""
    goals = [goal["sentence"] for goal in result["goals"]]
    return [*text_of(method_table(result)), *divergences(result["rows"]), *goals]


def method_markdown(result: Mapping[str, Any]) -> str:
    """The table as Markdown, with its caption and the goals."""
    goals = "\n".join(f"- {goal['sentence']}" for goal in result["goals"])
    parts = [markdown_of(method_table(result)), caption(result), goals]
    return "\n\n".join(part for part in parts if part)


def write_method_report(record: str | Path, out: str | Path) -> None:
    """Write a comparison's result.json as a page, or as Markdown for a name ending with .md."""
    result = read_json(Path(record))
    if Path(out).suffix == ".md":
        write_text(out, f"# {result['name']}\n\n{method_markdown(result)}\n")
        return
    panels = [draw_panel(result, key) for key in result.get("front") or {}]
    write_text(out, render_page(result, [method_table(result)], panels))


def render_page(
    result: Mapping[str, Any],
    tables: Sequence[Table],
    panels: Sequence[Markup],
    code: Sequence[str] = (),
) -> str:
    """One self-contained page: opens from disk, needs no network and no script."""
    return render(
        "adapters.html",
        name=result["name"],
        headline=headline(result),
        subject=result.get("subject") or "",
        better="higher" if result["metrics"][0] in HIGHER_IS_BETTER else "lower",
        tables=tables,
        panels=panels,
        code=code,
        goals=result.get("goals") or [],
        notes=result.get("notes") or [],
        command=result.get("command") or "",
    )


def draw_panel(result: Mapping[str, Any], key: str) -> Markup:
    """The first measure against one cost, of all adapters."""
    metric, (title, text) = result["metrics"][0], COSTS[key]
    points = [
        FrontPoint(
            cost=max(float(row[key]), 1e-6),
            value=float(row["mean"][metric]),
            label=_short(str(row["label"])),
            title=f"{row['label']}: {loss_text(row['mean'][metric])}, {text(row[key])}",
            is_front=row["id"] in result["front"][key],
        )
        for row in result["rows"]
        if row["method"] != "full"
    ]
    return draw_front(points, f"{NAMES[metric]} against {title}", text)


def _short(label: str) -> str:
    """A label that fits beside a point: what stands before the comma of a long one."""
    return label if len(label) < 24 else label.partition(",")[0]


def headline(result: Mapping[str, Any]) -> str:
    """One sentence: the best row, and what the goals came to."""
    metric = result["metrics"][0]
    best = ordered_rows(result["rows"], metric)[0]
    text = f"Best by {NAMES[metric]}: {best['label']}, {loss_text(best['mean'][metric])}."
    goals = result.get("goals") or []
    met = sum(bool(goal["met"]) for goal in goals)
    return text + (f" {met} of {len(goals)} goals met." if goals else "")


def ordered_rows(rows: Sequence[Mapping[str, Any]], metric: str) -> list[Mapping[str, Any]]:
    """Rows by one metric, the best first."""
    sign = -1.0 if metric in HIGHER_IS_BETTER else 1.0
    return sorted(rows, key=lambda row: sign * float(row["mean"][metric]))


def _best(rows: Sequence[Mapping[str, Any]], metric: str) -> float:
    return float(ordered_rows(rows, metric)[0]["mean"][metric])


def _milliseconds(seconds: float | None) -> str:
    return DASH if seconds is None else f"{1000 * seconds:.0f} ms"
