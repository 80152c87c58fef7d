"""Draw the board of MAD records: scores, costs, heat map, and published numbers beside ours.

FOLDERS are what `manticore mad run --out` wrote, or .jsonl files of such records. --pack writes all
records into one such file, to keep or to share. --savings says what halving and early stopping save
at which ranking, from a folder in which `mad run` was done both with and without --halving.

Example:
    manticore mad board runs/mad --out board.html --markdown board.md
    manticore mad board recipes/mad/pocket.jsonl runs/mad --out board.html
"""

from __future__ import annotations

import argparse
from pathlib import Path

from manticore.cli.options import add_dry_run, add_out
from manticore.runs import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore mad board`."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="records")
    parser.add_argument("--markdown", type=Path, help="write the tables as Markdown, too")
    parser.add_argument("--pack", type=Path, help="write all records into one .jsonl file")
    parser.add_argument("--savings", type=Path, help="write what halving saves, as JSON")
    add_out(parser, default="board.html", what="the page, .html or .md")
    add_dry_run(parser)


def run(args: argparse.Namespace) -> int:
    """Write the board and say who leads."""
    from manticore.evaluation.mad.results import load_records, write_lines
    from manticore.evaluation.mad.savings import savings
    from manticore.reports.mad_board import board_sections, write_board

    outputs = [p for p in (args.out, args.markdown, args.pack, args.savings) if p]
    for path in outputs:
        if path.is_dir():
            raise ValueError(f"{path} is a folder. Give a file, such as {path / 'board.html'}.")
    if args.out.suffix not in (".html", ".md"):
        raise ValueError(f"--out {args.out}: the board is a page, .html or .md.")
    records = load_records(args.folders)
    if args.dry_run:
        names = sorted({record["architecture"] for record in records})
        print(f"{len(records)} trainings of {len(names)} architectures: {', '.join(names)}")
        print(f"would write {', '.join(map(str, outputs))}")
        return 0
    write_board(args.folders, args.out, args.markdown)
    if args.pack:
        write_lines(args.pack, records)
    if args.savings:
        write_json(args.savings, savings(records))
    for section in board_sections(records):
        print(f"{section.title}: {section.findings[0]}")
    print(f"Board: {args.out}")
    return 0
