"""Findings of the doctor as a table: one line for each model, one column for each check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manticore.reports.records import read_json
from manticore.reports.rendering import render
from manticore.runs import write_text

Record = Mapping[str, Any]
_WORDS = {"pass": "ok", "fail": "wrong", "skip": "-", "error": "raises"}


def markdown_table(reports: Sequence[Record]) -> str:
    """The findings as a Markdown table with its legend."""
    checks = _checks(reports)
    lines = [
        "| model | " + " | ".join(checks) + " |",
        "|---|" + "---|" * len(checks),
    ]
    for report in reports:
        cells = [_cell(_finding(report, check)) for check in checks]
        lines.append(f"| {report['model']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _legend(), ""])


def write_page(reports: Sequence[Record], out: Path) -> Path:
    """Write the findings as one HTML file that opens from disk, and return its path."""
    checks = _checks(reports)
    page = render(
        "conformance.html",
        checks=checks,
        sentence=headline(reports),
        legend=_legend(),
        rows=[_row(report, checks) for report in reports],
        faults=[(report["model"], _faults(report)) for report in reports if _faults(report)],
    )
    write_text(out, page)
    return out


def write_record_page(record: Path, out: Path) -> Path:
    """Write the page of what `manticore doctor --out` wrote."""
    return write_page(read_json(record)["reports"], out)


def headline(reports: Sequence[Record]) -> str:
    """One sentence: how many models pass."""
    passed = sum(bool(report["passed"]) for report in reports)
    if len(reports) == 1:
        model = reports[0]["model"]
        return f"{model} passes every check." if passed else f"{model} has silent faults."
    return f"{passed} of {len(reports)} models pass every check."


def _checks(reports: Sequence[Record]) -> list[str]:
    longest = max(reports, key=lambda report: len(report["findings"]))
    return [finding["check"] for finding in longest["findings"]]


def _finding(report: Record, check: str) -> Record:
    """What was found; of a model that cannot run, that it cannot."""
    found = report["findings"]
    return next((finding for finding in found if finding["check"] == check), found[0])


def _faults(report: Record) -> list[Record]:
    return [finding for finding in report["findings"] if finding["status"] in ("fail", "error")]


def _cell(finding: Record) -> str:
    """`ok`, `wrong 3e-3`, `raises` or a dash."""
    word = _WORDS[finding["status"]]
    if finding["status"] != "fail":
        return word
    return word if finding["error"] is None else f"**{word} {finding['error']:.0e}**"


def _row(report: Record, checks: Sequence[str]) -> dict[str, Any]:
    cells = [
        {
            "status": _finding(report, check)["status"],
            "text": _cell(_finding(report, check)).strip("*").removeprefix("wrong "),
            "detail": _finding(report, check)["detail"],
        }
        for check in checks
    ]
    return {"model": report["model"], "cells": cells}


def _legend() -> str:
    return (
        "Numbers are the largest difference over the largest true logit, float32, against the "
        "same model run whole, alone and without a cache. A dash: the model has no use for the "
        "check, or refuses. gradient-reach: parameters that no gradient reaches. adapter-reach: "
        "linear layers where PEFT accepts a LoRA that then acts on nothing."
    )
