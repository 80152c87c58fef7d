"""Search for an architecture with MAD: propose layouts, screen them cheaply, keep the Pareto front.

Layouts are token mixers alone and striped with attention (0, 8, 25, 50 and 100 % of the blocks),
with SwiGLU or a mixture of experts; settings expand heads or state, as in mamba:d_state=32. A part
of the steps decides who is trained on; what nobody beats in score, parameters, state and FLOPs is
the result: search.json, search.html and search.md in --out.

Example:
    manticore mad search --token-mixers mamba mh-hyena --blocks 4 --out runs/mad-search
    manticore mad search --token-mixers mamba mamba:d_state=32 --tasks CR FR C --dry-run
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from manticore.cli.mad_cost import add_rate, check_rate, cost_lines, cost_of
from manticore.cli.mad_entries import (
    add_execution,
    add_protocol,
    protocol_of_options,
    seeds_of,
)
from manticore.cli.options import add_dry_run, add_out, add_quiet
from manticore.runs import write_json

if TYPE_CHECKING:
    from manticore.evaluation.mad.entry import Entry
    from manticore.evaluation.mad.layouts import LayoutSpace
    from manticore.evaluation.mad.protocol import Protocol


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore mad search`."""
    parser.add_argument(
        "--token-mixers", nargs="+", metavar="MIXER", help="to choose from, with their settings"
    )
    parser.add_argument(
        "--channel-mixers", nargs="+", metavar="MIXER", help="default swiglu and moe-mlp"
    )
    parser.add_argument(
        "--shares", nargs="+", type=float, metavar="PERCENT", help="attention: 0 8 25 50 100"
    )
    parser.add_argument("--attention", help="mixer of the attention blocks (mh-attention)")
    parser.add_argument("--blocks", type=int, help="pairs of two layers (4)")
    parser.add_argument("--d-model", type=int, help="width (default: the protocol's)")
    add_protocol(parser)
    add_execution(parser)
    add_rate(parser)
    add_out(parser, default="runs/mad-search", what="folder of the records and the report")
    add_dry_run(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Search, write the report, print the front."""
    check_rate(args)
    from manticore.evaluation.mad.executors import check_executor
    from manticore.evaluation.mad.layouts import propose
    from manticore.evaluation.mad.results import ResultsFolder, sweep_identity
    from manticore.evaluation.mad.search import search_layouts
    from manticore.reports.mad_search_page import summary, write_search_report

    rules, seeds = protocol_of_options(args), seeds_of(args)
    check_executor(args.executor, args.workers)
    entries, notes = propose(space_of(args, rules))
    folder = ResultsFolder(args.out)
    folder.refuse_others(sweep_identity(rules))
    if args.dry_run:
        print("\n".join([*describe(args, entries, rules, seeds), *notes]))
        print(f"would write search.json, search.html, search.md and trials/ in {args.out}")
        return 0
    if not entries:
        raise ValueError("No layout is left. " + " ".join(notes))
    with folder.open(rules):
        found = search_layouts(
            entries,
            rules,
            seeds,
            folder,
            executor=args.executor,
            processes=args.workers,
            progress=not args.quiet,
        )
    record = {**found.to_dict(), "notes": notes}
    write_json(args.out / "search.json", record)
    for name in ("search.html", "search.md"):
        write_search_report(args.out / "search.json", args.out / name)
    print(summary(record))
    for one in found.scores:
        if one.name in found.front and one.overall is not None:
            print(f"{100 * one.overall:5.1f}  {one.name}")
    print(f"wrote {args.out / 'search.html'}")
    return 0


def space_of(args: argparse.Namespace, rules: Protocol) -> LayoutSpace:
    """The layouts that the options ask for."""
    from manticore.evaluation.mad.layouts import SHARES, LayoutSpace

    given: dict[str, Any] = {
        "token_mixers": args.token_mixers and tuple(args.token_mixers),
        "channel_mixers": args.channel_mixers and tuple(args.channel_mixers),
        "attention": args.attention,
        "blocks": args.blocks,
        "d_model": rules.d_model if args.d_model is None else args.d_model,
    }
    if args.shares is not None:
        # 8 stands for one block in twelve.
        exact = {round(100 * share): share for share in SHARES}
        given["shares"] = tuple(exact.get(round(p), p / 100) for p in args.shares)
    return LayoutSpace(**{key: value for key, value in given.items() if value is not None})


def describe(
    args: argparse.Namespace, entries: Sequence[Entry], rules: Protocol, seeds: Sequence[int]
) -> list[str]:
    """The candidates, what measuring all of them whole would cost, and the search's part of it."""
    from manticore.evaluation.mad.plan import plan_trials
    from manticore.evaluation.mad.search import RUNGS, search_steps

    rungs = ", ".join(f"{rung.points} point at {100 * rung.share:g} %" for rung in RUNGS)
    said = [
        f"protocol: {rules.name}, version {rules.version}",
        f"{len(entries)} layouts; rungs: {rungs} of the steps, then whole",
        *(f"{entry.name}: {entry.costs()['parameters']:,} parameters" for entry in entries),
    ]
    if not entries:
        return said
    whole = cost_of(args, plan_trials(entries, rules, seeds))
    steps = search_steps(entries, rules, seeds)
    line = f"the search itself: {steps:,} steps, {100 * steps / whole.steps:.2g} % of these"
    if whole.hours is not None:
        hours = whole.hours * steps / whole.steps
        line += f"; hours: {hours:.2g} if those that go on cost what all do on average"
    return [*said, "measuring all of them whole:", *cost_lines(args, whole), line]
