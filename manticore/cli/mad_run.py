"""Measure architectures on MAD: six synthetic tasks that predict how a design will scale.

The pocket profile takes minutes for an architecture on two CPU cores, baseline and full are the
paper's. Every training is a record in --out; what is recorded is never trained again, so the same
command continues after a kill, and more seeds or architectures add to the folder.

Example:
    manticore mad run --layers mh-attention swiglu mamba swiglu --seeds 3 --out runs/mad
    manticore mad run --preset Transformer Mamba Hyena --seeds 3 --workers 2 --out runs/mad
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manticore.cli.mad_cost import add_rate, check_rate, cost_lines, cost_of
from manticore.cli.mad_entries import (
    add_entries,
    add_execution,
    add_protocol,
    entries_of,
    protocol_of_options,
    seeds_of,
)
from manticore.cli.options import add_dry_run, add_out, add_quiet

if TYPE_CHECKING:
    from manticore.evaluation.mad.entry import Entry
    from manticore.evaluation.mad.plan import PlannedTrial
    from manticore.evaluation.mad.protocol import Protocol


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore mad run`."""
    add_entries(parser)
    add_protocol(parser)
    add_execution(parser)
    parser.add_argument(
        "--halving",
        action="store_true",
        help="try all rates and decays for a part of the steps, and only the better ones whole",
    )
    parser.add_argument("--stack", type=int, help="trainings in one job at most")
    add_rate(parser)
    add_out(parser, default="runs/mad", what="folder of the records")
    add_dry_run(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Train what has no record yet, then print the scores."""
    check_rate(args)
    if args.stack is not None and args.stack < 1:
        raise ValueError(f"--stack {args.stack}: a job has at least one training.")
    from manticore.evaluation.mad.executors import check_executor
    from manticore.evaluation.mad.plan import plan_trials
    from manticore.evaluation.mad.results import ResultsFolder, sweep_identity

    rules, seeds = protocol_of_options(args), seeds_of(args)
    check_executor(args.executor, args.workers)
    entries = entries_of(args, rules.d_model if args.d_model is None else args.d_model)
    planned = plan_trials(entries, rules, seeds)
    folder = ResultsFolder(args.out)
    folder.refuse_others(sweep_identity(rules))
    if args.dry_run:
        print("\n".join(describe(args, entries, rules, planned, folder)))
        return 0
    with folder.open(rules):
        records = train(args, entries, rules, seeds, planned, folder)
    print("\n".join(score_lines(records)))
    print(f"wrote {args.out}; manticore mad board {args.out} draws it")
    return 0


def train(
    args: argparse.Namespace,
    entries: Sequence[Entry],
    rules: Protocol,
    seeds: Sequence[int],
    planned: Sequence[PlannedTrial],
    folder: Any,
) -> list[dict[str, Any]]:
    """Run the sweep, whole or by halving; the records of everything that was trained."""
    from manticore.evaluation.mad.halving import run_halving
    from manticore.evaluation.mad.sweep import STACK, run_sweep

    options = {
        "executor": args.executor,
        "processes": args.workers,
        "stack": STACK if args.stack is None else args.stack,
        "progress": not args.quiet,
    }
    if not args.halving:
        return run_sweep(planned, folder, **options)
    records, ledger = run_halving(entries, rules, seeds, folder, **options)
    print(ledger.line())
    return records


def describe(
    args: argparse.Namespace,
    entries: Sequence[Entry],
    rules: Protocol,
    planned: Sequence[PlannedTrial],
    folder: Any,
) -> list[str]:
    """What would be trained and what it would cost."""
    waiting = [one for one in planned if not folder.has(one.trial.key)]
    said = [
        f"protocol: {rules.name}, version {rules.version}, compat {rules.compat}: "
        f"{len(rules.settings)} settings x {len(rules.grid)} points x {args.seeds} seeds",
    ]
    for entry in entries:
        costs = entry.costs()
        numbers = ", ".join(f"{key} {_count(value)}" for key, value in costs.items())
        said.append(f"architecture: {entry.name}: {numbers}")
    said.append(f"recorded already: {len(planned) - len(waiting)}")
    said += cost_lines(args, cost_of(args, waiting))
    if args.halving:
        said.append("halving leaves part of these out; the numbers are for all")
    return [*said, f"would write {Path(args.out) / 'trials'}/<key>.json"]


def score_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """The scores for a terminal, in percent."""
    from manticore.evaluation.mad import score
    from manticore.reports.mad_tables import score_table, text_of

    scores = score(records)
    lines = text_of(score_table(scores, ""))
    for one in scores:
        lines += [f"{one.name} diverged: {title}" for title in one.diverged]
    return lines


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
