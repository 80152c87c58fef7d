"""One self-contained HTML page from a run's records: opens from disk, needs no network, no script.

Everything that comes from a run (labels, samples, the recipe) is untrusted text: the template
escapes it, and the page's own policy forbids scripts and any request.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manticore.reports import sections
from manticore.reports.architecture import draw_architecture
from manticore.reports.curves_figure import curve_panels, draw_curves
from manticore.reports.dots_figure import draw_dots
from manticore.reports.headline import headline
from manticore.reports.mixture_figure import draw_mixture_panel, mixture_paths, searched_rows
from manticore.reports.palette import Look, component_colour, looks
from manticore.reports.records import Row, RunRecords, load_rows, load_run, sorted_rows
from manticore.reports.rendering import render
from manticore.reports.tables import loss_columns
from manticore.runs import write_text

# Every figure is drawn for a desk and for a phone; the style sheet shows one of them.
WIDE, HALF, NARROW = 880.0, 425.0, 342.0


def write_report(
    run_folder: str | Path, out: str | Path | None = None, expected: str | Path | None = None
) -> Path:
    """Write the report of a run and return its path.

    Args:
        run_folder: a folder with `result.json`, and what else the run left.
        out: the HTML file, by default `report.html` in the run's folder.
        expected: the committed table of several seeds to show beside this run; by default
            `expected.json` in the run's folder, if there is one.
    """
    run = load_run(run_folder)
    target = Path(out) if out is not None else run.path / "report.html"
    if target.is_dir():
        raise ValueError(f"{target} is a folder. Give a file, such as {target / 'report.html'}.")
    page = render_report(run, load_expected(run, expected))
    write_text(target, page)
    return target


def load_expected(run: RunRecords, expected: str | Path | None = None) -> list[Row]:
    """The committed table for a run, empty when there is none."""
    path = Path(expected) if expected is not None else run.path / "expected.json"
    if expected is None and not path.is_file():
        return []
    return load_rows(path, run.result["kinds"])


def render_report(run: RunRecords, committed: Sequence[Row] = ()) -> str:
    """The page as text; equal records give equal bytes."""
    return render("report.html", **_texts(run, committed), **_figures(run, committed))


def _texts(run: RunRecords, committed: Sequence[Row]) -> dict[str, Any]:
    result, hybrid = run.result, run.result["hybrid"]
    rows, kinds = result["rows"], result["kinds"]
    styles = _looks(rows, committed)
    tables = [sections.loss_table(rows, kinds, styles, f"This run, seed {result['seed']}")]
    if committed:
        seeds = max(row["seeds"] for row in committed)
        caption = f"Committed table, {seeds} seeds: mean ± standard deviation over seeds"
        tables.append(sections.loss_table(committed, kinds, styles, caption))
    return {
        "result": result,
        "headline": headline(rows, committed),
        "tiles": sections.tiles(rows),
        "loss_tables": tables,
        "cost_table": sections.cost_table(rows, styles),
        "phase_table": sections.phase_table(result["phases"]) if result.get("phases") else None,
        "components": sections.component_table(hybrid),
        "fit": sections.fit_table(hybrid),
        "projectors": sections.projector_sentence(hybrid),
        "samples": [_sample(sample) for sample in result.get("samples") or []],
        "goals": result.get("goals") or [],
        "data": result.get("data") or {},
        "command": result.get("command") or "",
        "recipe": run.recipe,
        "environment": _flat(run.environment),
    }


def _figures(run: RunRecords, committed: Sequence[Row]) -> dict[str, Any]:
    rows, hybrid = run.result["rows"], run.result["hybrid"]
    styles = _looks(rows, committed)
    labels = {row["id"]: row["label"] for row in rows}
    names = [component["name"] for component in hybrid["components"]]
    columns = loss_columns(run.result["kinds"])
    panels = curve_panels(run.metrics)
    sizes = [(WIDE, 380.0) if i == 0 else (HALF, 260.0) for i in range(len(panels))]
    drawn = {row for panel in panels for row in panel.curves}
    known = [row for row in sorted_rows(rows) if row["id"] in drawn]
    return {
        "architecture": [draw_architecture(hybrid, width) for width in (WIDE, NARROW)],
        "shared": hybrid["mixing"] == "shared",
        "component_key": [(component_colour(k), name) for k, name in enumerate(names)],
        "mixture": [
            (labels.get(row, row), [draw_mixture_panel(*item, names) for item in paths.items()])
            for row in searched_rows(run.metrics)
            if (paths := mixture_paths(run.metrics, row))
        ],
        "curves": [
            [draw_curves(panel, styles, labels, *size) for size in (wide, (NARROW, 260.0))]
            for wide, panel in zip(sizes, panels, strict=True)
        ],
        "curve_key": [(styles[row["id"]], row["label"]) for row in known],
        "other_curves": len(drawn - set(labels)),
        "dots": (
            draw_dots(rows, committed, columns, styles, WIDE),
            [draw_dots(rows, committed, [c], styles, NARROW, narrow=True) for c in columns],
        ),
        "has_committed": bool(committed),
    }


def _looks(rows: Sequence[Row], committed: Sequence[Row]) -> dict[str, Look]:
    return {**looks(committed), **looks(rows)}


def _sample(sample: Mapping[str, Any]) -> dict[str, str]:
    """A sample's prompt, what the model added, and how it was drawn."""
    prompt, text = str(sample["prompt"]), str(sample["text"])
    settings = sample.get("settings") or ""
    if isinstance(settings, Mapping):
        settings = ", ".join(f"{key} {value}" for key, value in settings.items())
    return {"prompt": prompt, "text": text.removeprefix(prompt), "settings": str(settings)}


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text) pairs."""
    if not isinstance(value, Mapping):
        text = value if isinstance(value, str) else json.dumps(value)
        return [(prefix, text)]
    pairs = [_flat(value[key], f"{prefix}.{key}" if prefix else str(key)) for key in value]
    return [pair for found in pairs for pair in found]
