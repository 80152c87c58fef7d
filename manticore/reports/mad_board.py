"""The board of MAD: every architecture that was measured, as one HTML page or as Markdown.

The page opens from disk and needs no network and no script. Scores of different protocols stand in
different tables, because they cannot be compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from manticore.evaluation.mad.pocket import CHOSEN_ON
from manticore.evaluation.mad.results import Record, load_records
from manticore.evaluation.mad.score import protocol_of, score
from manticore.evaluation.mad.score_types import ArchitectureScore
from manticore.evaluation.mad.settings import SHORT
from manticore.reports.mad_findings import findings
from manticore.reports.mad_heatmap import draw_heatmap
from manticore.reports.mad_published import Comparison, PublishedRow, compare, load_published
from manticore.reports.mad_tables import (
    cost_table,
    markdown_of,
    published_table,
    rank_table,
    score_table,
)
from manticore.reports.rendering import render
from manticore.reports.sections import Table
from manticore.runs import write_text

ABOUT = (
    "Accuracy on the test split in percent, mean over settings and seeds; ± is half of a 95 % "
    "interval, Student's t over seeds (first weights and order of the examples; the examples are "
    "the same). For each setting and seed the validation split chooses rate and decay. "
    "The average of 5 counts recall and noisy recall as one; normalised is (accuracy - chance) / "
    "(ceiling - chance)."
)
ABOUT_ORIGINAL = (
    "The original's selection and metric (compat mad-lab): accuracy by class and batch, and rate, "
    "decay and best weights chosen on the test split. ± is half of a 95 % interval, Student's t "
    "over seeds."
)


@dataclass(frozen=True, kw_only=True)
class BoardSection:
    """Everything about one protocol."""

    title: str
    about: str
    findings: list[str]
    settings: list[str]
    heatmap: Markup
    tables: list[Table]
    ranks: list[Table]
    published: Table
    flaws: list[str]


def write_board(
    sources: Sequence[str | Path], out: str | Path, markdown: str | Path | None = None
) -> list[ArchitectureScore]:
    """Write the board of all records in folders and files, and return its scores.

    Args:
        out: the page; a name that ends with .md gets Markdown instead.
        markdown: a second file, for the Markdown.
    """
    records = load_records(sources)
    sections = board_sections(records)
    if Path(out).suffix == ".md":
        write_text(out, render_markdown(sections))
    else:
        write_text(out, render_page(sections))
    if markdown is not None:
        write_text(markdown, render_markdown(sections))
    return score(records)


def board_sections(records: Sequence[Record]) -> list[BoardSection]:
    """One section for each protocol and version in the records."""
    rows = load_published()
    by_protocol: dict[str, list[ArchitectureScore]] = {}
    for one in score(records):
        by_protocol.setdefault(json.dumps(one.protocol, sort_keys=True), []).append(one)
    return [_section(scores, records, rows) for scores in by_protocol.values()]


def render_page(sections: Sequence[BoardSection]) -> str:
    """The page as text; equal records give equal bytes."""
    return render("mad_board.html", sections=sections)


def render_markdown(sections: Sequence[BoardSection]) -> str:
    """The same tables as Markdown."""
    parts = ["# MAD board"]
    for section in sections:
        parts += [f"## {section.title}", "\n".join(f"- {said}" for said in section.findings)]
        parts += [section.about, *map(_with_caption, section.tables)]
        parts += ["### Ranks against published numbers", *map(_with_caption, section.ranks)]
        parts += ["### Published numbers", markdown_of(section.published)]
        if section.flaws:
            parts += ["### Diverged or missing", "\n".join(f"- {f}" for f in section.flaws)]
    return "\n\n".join(parts) + "\n"


def rank_comparisons(
    scores: Sequence[ArchitectureScore], rows: Sequence[PublishedRow]
) -> dict[str, list[Comparison]]:
    """Rank agreement over all architectures; of the pocket protocol over each half, too."""
    names = [one.name for one in scores]
    found = {"All architectures": compare(scores, rows)}
    if scores[0].protocol["profile"] == "pocket":
        kept = [name for name in names if name not in CHOSEN_ON]
        found["Architectures that the settings were not chosen on"] = compare(scores, rows, kept)
        found["Architectures that the settings were chosen on"] = compare(scores, rows, CHOSEN_ON)
    return {caption: comparisons for caption, comparisons in found.items() if comparisons}


def _section(
    scores: list[ArchitectureScore], records: Sequence[Record], rows: Sequence[PublishedRow]
) -> BoardSection:
    identity = scores[0].protocol
    own = [r for r in records if all(r["settings"][k] == v for k, v in identity.items())]
    rules = protocol_of(own[0], own[1:])
    title = f"{identity['profile']}, version {identity['protocol_version']}"
    title += f" (tasks version {_versions(identity['task_versions'])})"
    is_original = identity["compat"] == "mad-lab"
    ranks = [rank_table(c, caption) for caption, c in rank_comparisons(scores, rows).items()]
    return BoardSection(
        title=title + (", compat mad-lab" if is_original else ""),
        about=ABOUT_ORIGINAL if is_original else ABOUT,
        findings=findings(scores),
        settings=[f"{s.label}: {_options(s.options)}" for s in rules.settings],
        heatmap=draw_heatmap(scores),
        tables=[score_table(scores, "In percent, best average first"), cost_table(scores)],
        ranks=ranks,
        published=published_table(scores, rows),
        flaws=_flaws(scores),
    )


def _flaws(scores: Sequence[ArchitectureScore]) -> list[str]:
    found = []
    for one in scores:
        found += [f"{one.name} diverged: {title}" for title in sorted(one.diverged)]
        found += [f"{one.name} is missing: {title}" for title in one.missing]
    return found


def _versions(versions: Mapping[str, int]) -> str:
    """One number if all tasks have the same version."""
    different = sorted(set(versions.values()))
    if len(different) == 1:
        return str(different[0])
    return ", ".join(f"{SHORT[task]} {version}" for task, version in versions.items())


def _with_caption(table: Table) -> str:
    return f"{table.caption}:\n\n{markdown_of(table)}"


def _options(options: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items())
