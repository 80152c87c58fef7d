"""What a MAD sweep will cost, told by a dry run: counts, and hours by a timing or a stated rate."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manticore.evaluation.mad.estimate import Estimate
    from manticore.evaluation.mad.plan import PlannedTrial

GIGA = 1e9


def add_rate(parser: argparse.ArgumentParser) -> None:
    """Add --rate."""
    parser.add_argument(
        "--rate",
        type=float,
        metavar="GFLOPS",
        help="with --dry-run: speed of one worker, instead of timing a few steps",
    )


def check_rate(args: argparse.Namespace) -> None:
    """Refuse a rate that nothing would read."""
    if args.rate is not None and not args.dry_run:
        raise ValueError("--rate is for --dry-run. Leave it out, or add --dry-run.")


def cost_of(args: argparse.Namespace, planned: Sequence[PlannedTrial]) -> Estimate:
    """The cost of what is planned, at the stated rate or by timing each architecture."""
    from manticore.evaluation.mad.estimate import estimate
    from manticore.evaluation.mad.group import train_group

    rate = None if args.rate is None else args.rate * GIGA
    return estimate(planned, args.workers, rate, None if args.rate else train_group)


def cost_lines(args: argparse.Namespace, cost: Estimate) -> list[str]:
    """The same for people, with where the hours come from."""
    lines = cost.lines()
    if cost.hours is not None:
        source = f"a stated {args.rate:g} GFLOPs/s" if args.rate else "timing a few steps"
        lines[-1] += f" ({source}, {args.workers} at once)"
    return lines
