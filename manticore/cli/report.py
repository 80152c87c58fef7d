"""Write a run's report: one HTML file that opens from disk.

Example:
    manticore report runs/quickstart --out quickstart.html
"""

import argparse
from pathlib import Path

from manticore.cli.options import add_dry_run, add_out
from manticore.reports.page import load_expected, write_report
from manticore.reports.records import load_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore report`."""
    parser.add_argument("run", type=Path, help="folder that `manticore run` wrote")
    add_out(parser, what="HTML file (default: report.html in the run's folder)")
    parser.add_argument(
        "--expected", type=Path, help="committed table of several seeds to show beside the run"
    )
    add_dry_run(parser)


def run(args: argparse.Namespace) -> int:
    """Write the report and print its path."""
    if args.dry_run:
        records = load_run(args.run)
        committed = load_expected(records, args.expected)
        rows = len(records.result["rows"])
        print(f"{rows} rows, {len(records.metrics)} metrics, {len(committed)} committed rows")
        print(f"would write {args.out or args.run / 'report.html'}")
        return 0
    print(f"Report: {write_report(args.run, args.out, args.expected)}")
    return 0
