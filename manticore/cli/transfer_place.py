"""Choose the layers that stay attention: five ways, one budget for the cache, one table.

none, evenly spaced, the paper's first and middle, those that the teacher misses most when they are
silenced (zero-ablation), and those whose attention helps the converted model most (restore-one).
The budget is what the cache of one sequence may hold at --context tokens: keys and values of layers
that stay, states of the others. Scores are taken on the recipe's training split and choices are
compared on its validation split, before any training. Put the layers into a row's `keep`.

Example:
    manticore transfer place recipes/transfer/prose.yaml --budget 600KB --context 1024
    manticore transfer place recipes/transfer/prose.yaml --budget 2MB --context 4096 --mixer mamba2
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from manticore.cli.options import add_out, add_recipe, overrides_of
from manticore.cli.plan import parse_bytes
from manticore.config import find_recipe, load_recipe
from manticore.config.transfer_recipe import TransferRecipe
from manticore.runs import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore transfer place`."""
    add_recipe(parser)
    parser.add_argument(
        "--budget", required=True, metavar="600KB", help="what the cache of a sequence may hold"
    )
    parser.add_argument("--context", type=int, help="its tokens (the recipe's data.seq_len)")
    parser.add_argument("--mixer", help="of the other layers (that of the recipe's first row)")
    parser.add_argument("--measure", choices=("kl", "loss"), default="kl", help="of scores (kl)")
    parser.add_argument("--batches", type=int, default=4, help="batches to score and to try on (4)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_out(parser, what="JSON file for the table")


def run(args: argparse.Namespace) -> int:
    """Print the table; nothing is written without --out."""
    from manticore.cli.quiet import quiet_transformers
    from manticore.conversion.placement import placement_lines, placement_record

    quiet_transformers()
    placements, budget = place(args)
    record = {
        "verb": "transfer place",
        "recipe": args.recipe,
        **placement_record(placements, budget),
    }
    if args.out:
        write_json(args.out, record)
    print(json.dumps(record, indent=2) if args.json else "\n".join(placement_lines(placements)))
    return 0


def place(args: argparse.Namespace) -> tuple[Sequence[Any], Any]:
    """All placements, and the budget."""
    from manticore.conversion.placement import compare_placements
    from manticore.conversion.placement_budget import CacheBudget
    from manticore.conversion.teacher import prepared

    if args.batches < 1:
        raise ValueError(f"--batches {args.batches}: at least 1 is needed.")
    recipe = load_recipe(TransferRecipe, args.recipe, overrides_of(args))
    room = parse_bytes(args.budget, "--budget", smallest=1)
    budget = CacheBudget(max_bytes=room, context=args.context or recipe.data.seq_len)
    row = recipe.rows[0]
    target: dict[str, Any] = {"mixer": args.mixer or row.mixer}
    if args.mixer in (None, row.mixer):
        target |= row.settings
    shared = prepared(recipe, find_recipe(args.recipe).parent)
    source, data = shared.source, shared.data
    texts = [
        [data.batches(split, recipe.train.batch_size, 0).batch_at(i) for i in range(args.batches)]
        for split in ("train", "validation")
    ]
    found = compare_placements(
        source, target, texts[0], budget, test_batches=texts[1], measure=args.measure
    )
    return found, budget
