"""Write a run's report: one HTML file that opens from disk.

RUN is the folder that `manticore run`, `transfer run`, `adapt run`, `adapt search`, `mad run` or
`mad search` wrote, or a record of one: a committed .expected.json of a transfer or of adapters, a
search.json, a .jsonl of MAD records, or what `doctor --out` wrote.

Example:
    manticore report runs/quickstart --out quickstart.html
    manticore report recipes/transfer/prose.expected.json --out prose.html
    manticore report recipes/mad/search.json --out search.html
"""

import argparse
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from manticore.cli.options import add_dry_run, add_out
from manticore.reports.page import load_expected, write_report
from manticore.reports.records import load_run, read_json

Writer = Callable[[Path, Path], object]

# Verb in the record -> module:function that draws it.
WRITERS = {
    "transfer run": "transfer:write_transfer_report",
    "adapt run": "adapters:write_method_report",
    "adapt search": "adapter_search:write_search_report",
    "doctor": "conformance:write_record_page",
}
_MAD_SEARCH = {"scores", "front", "history"}
"""Keys of a search.json, which names no verb."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore report`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or its record")
    add_out(parser, what="HTML file (default: beside the record)")
    parser.add_argument(
        "--expected",
        type=Path,
        help="committed table of several seeds to show beside a run of `manticore run`",
    )
    add_dry_run(parser)


def run(args: argparse.Namespace) -> int:
    """Write the report and print its path."""
    found = other_page(args.run)
    if found is None:
        return _report_hybrid(args)
    record, page, write = found
    out = args.out or page
    if args.expected:
        raise ValueError("--expected: only reports of `manticore run` show a second table.")
    if out.is_dir():
        raise ValueError(f"{out} is a folder. Give a file, such as {out / 'report.html'}.")
    if args.dry_run:
        print(f"would write {out} from {record}")
        return 0
    write(record, out)
    print(f"Report: {out}")
    return 0


def other_page(path: Path) -> tuple[Path, Path, Writer] | None:
    """What to read, where the page goes and who draws it; None for a run of `manticore run`.

    Raises:
        ValueError: a record of something that has no page.
    """
    if (path / "search.json").is_file():
        write = _writer("mad_search_page:write_search_report")
        return path / "search.json", path / "search.html", write
    if (path / "sweep.json").is_file():
        return path, path / "board.html", _draw_board
    if path.is_file() and path.suffix == ".jsonl":
        return path, path.with_suffix(".html"), _draw_board
    record = path if path.is_file() else path / "result.json"
    if not record.is_file():
        return None  # whose error says what is missing
    result = read_json(record)
    keys = result if isinstance(result, dict) else {}
    place = WRITERS.get(keys.get("verb", ""))
    if place is None and keys.keys() >= _MAD_SEARCH:
        place = "mad_search_page:write_search_report"
    if place is not None:
        page = path / "report.html" if path.is_dir() else path.with_suffix(".html")
        return record, page, _writer(place)
    if path.is_dir() and "schema" in result:
        return None
    raise ValueError(f"{record} {_why_no_page(record, keys)}")


def _why_no_page(record: Path, keys: Mapping[str, Any]) -> str:
    """What to give in place of a record that cannot be drawn."""
    if keys.keys() >= {"schema", "rows"}:
        if record.name == "result.json":
            return f"belongs to its run: give the folder, {record.parent}."
        return (
            "is a committed table of `manticore run`, without the run. Show it beside a run: "
            f"manticore report RUN --expected {record}"
        )
    if keys.keys() >= {"exhaustive", "halving"}:
        return (
            "says what halving saves and has no page. Give the folder of `mad run`, or records as "
            "a .jsonl file, such as recipes/mad/pocket.jsonl."
        )
    kind = f"is a record of `{keys['verb']}`, which" if "verb" in keys else "is of something that"
    verbs = ", ".join(f"`{verb}`" for verb in WRITERS)
    return (
        f"{kind} has no page. Give what `manticore run`, {verbs}, `mad run` or `mad search` wrote."
    )


def _report_hybrid(args: argparse.Namespace) -> int:
    if args.dry_run:
        records = load_run(args.run)
        committed = load_expected(records, args.expected)
        rows = len(records.result["rows"])
        print(f"{rows} rows, {len(records.metrics)} metrics, {len(committed)} committed rows")
        print(f"would write {args.out or args.run / 'report.html'}")
        return 0
    print(f"Report: {write_report(args.run, args.out, args.expected)}")
    return 0


def _draw_board(folder: Path, out: Path) -> None:
    from manticore.reports.mad_board import write_board

    write_board([folder], out)


def _writer(place: str) -> Writer:
    """A function of the reports; each kind of run loads its own alone."""
    module, _, name = place.partition(":")
    found: Writer = getattr(importlib.import_module(f"manticore.reports.{module}"), name)
    return found
