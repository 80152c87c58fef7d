"""Say how much memory each stage of a recipe takes, and what to change so that it fits.

No weights are read and nothing is trained: every step is made once with tensors that have shapes
and no data, and counted. Weights, gradients, optimizer, activations and cache are those of the
moment at which their sum is largest. On a CPU the sum is what torch allocates, within a few
percent. Not counted: the program itself (about 0.5 GB for each process), scratch space inside
kernels, the allocator's fragmentation and a GPU's context (together about a tenth; the plan says
"tight" within 15 %), and the moment of writing a checkpoint. A plan is for one training at a time.
Plans are made of recipes for pretraining, hybrids, adapters and transfers. `manticore mad` has no
recipes and needs no plan: its models are 128 channels wide and train on any machine.

Example:
    manticore plan recipes/hybrids/quickstart.yaml --memory 16GB
    manticore plan recipes/zoo/mamba-maths.yaml --gpu 80GB train.batch_size=4096
    manticore plan recipes/more/maths.yaml --gpu 24GB --json
    manticore plan recipes/transfer/prose.yaml --memory 200MB
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from manticore.cli.options import add_out, add_quiet, add_recipe, overrides_of
from manticore.config import find_recipe, load_recipe, recipe_kind

MARGIN = 0.15
"""Share by which a run may exceed its plan; what lies within is called tight."""
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore plan`."""
    add_recipe(parser)
    room = parser.add_mutually_exclusive_group()
    room.add_argument("--gpu", metavar="80GB", help="memory of the GPU that it should fit on")
    room.add_argument("--memory", metavar="16GB", help="memory of the machine, for a run on a CPU")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    add_out(parser, what="file for the plan as JSON")
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print; 1 if something does not fit."""
    from manticore.cli.hybrid_run import quiet_transformers
    from manticore.runs import write_json

    budget = parse_bytes(args.gpu or args.memory)
    quiet_transformers()
    plan = make_plan(args, budget)
    if args.out:
        write_json(args.out, plan)
    print(json.dumps(plan, indent=2) if args.json else "\n".join(plan_lines(plan)))
    return 1 if plan["verdict"] == "does not fit" else 0


def make_plan(args: argparse.Namespace, budget: int | None) -> dict[str, Any]:
    """The whole plan as plain values."""
    from tqdm import tqdm

    from manticore.cli.plan_changes import measure_changes

    load, stages_of, base = opened(args)
    recipe: Any = load(())
    stages = stages_of(recipe, base, False)
    bar = tqdm(stages, desc="stages", leave=False, disable=args.quiet, file=sys.stderr)
    measured = {stage.name: stage.measure() for stage in bar}
    total = max(memory.total for memory in measured.values())
    changes = []
    if budget is None or total > budget:

        def rebuild(change: Any) -> Any:
            return stages_of(load(change.keys), base, change.adapters)

        found = measure_changes(recipe, rebuild, measured, budget)
        for outcome in tqdm(found, desc="changes", leave=False, disable=args.quiet):
            change = {"title": outcome.change.title, "keys": list(outcome.change.keys)}
            changes.append(
                {**change, "total": outcome.total, "verdict": verdict(outcome.total, budget)}
            )
    return {
        "verb": "plan",
        "recipe": str(args.recipe),
        "overrides": list(overrides_of(args)),
        "kind": recipe.kind,
        "budget": budget,
        "total": total,
        "verdict": verdict(total, budget),
        "stages": [
            {"name": name, **memory.to_dict(), "verdict": verdict(memory.total, budget)}
            for name, memory in measured.items()
        ],
        "changes": changes,
    }


def opened(args: argparse.Namespace) -> tuple[Any, Any, Path]:
    """How to read the recipe with more overrides, how to make its stages, and its folder."""
    from manticore.cli.plan_stages import KINDS

    kind = KINDS[recipe_kind(args.recipe, tuple(KINDS))]

    def load(more: tuple[str, ...]) -> Any:
        recipe: Any = load_recipe(kind.recipe, args.recipe, (*overrides_of(args), *more))
        kind.check(recipe, find_recipe(args.recipe).parent)
        return recipe

    return load, kind.stages, find_recipe(args.recipe).parent


def parse_bytes(text: str | None) -> int | None:
    """`80GB` or `16GiB` as bytes."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in _UNITS or not float(found[1]):
        raise ValueError(f"{text} is no amount of memory. Give one like 80GB, 16GiB or 500MB.")
    return round(float(found[1]) * _UNITS[found[2].upper()])


def verdict(total: int, budget: int | None) -> str | None:
    """fits, tight or does not fit; None without a budget."""
    if budget is None:
        return None
    if total > budget:
        return "does not fit"
    return "tight" if total * (1 + MARGIN) > budget else "fits"


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """The plan as a table, and what to change."""
    parts = ("weights", "gradients", "optimizer", "activations", "cache", "total")
    width = max(len(stage["name"]) for stage in plan["stages"])
    lines = [" ".join([" " * width, *(f"{part:>11}" for part in parts)])]
    for stage in plan["stages"]:
        cells = [f"{size_text(stage[part]):>11}" for part in parts]
        lines.append(" ".join([f"{stage['name']:{width}}", *cells, f" {stage['verdict'] or ''}"]))
    lines = [line.rstrip() for line in lines]
    most = f"most at one time: {size_text(plan['total'])}"
    if plan["budget"] is not None:
        most += f" of {size_text(plan['budget'])}: {plan['verdict']}"
    lines += ["", most]
    if plan["changes"]:
        lines += ["", "to need less (the most memory at one time after each change):"]
    for change in plan["changes"]:
        keys = f"  {' '.join(change['keys'])}" if change["keys"] else ""
        found = f" ({change['verdict']})" if change["verdict"] else ""
        lines.append(f"{size_text(change['total']):>11}{found}{keys}")
        lines.append(f"{'':11}  {change['title']}")
    return lines


def size_text(size: int) -> str:
    """Bytes for people, in powers of ten."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= 0.9995 * factor:  # where three digits round up to the next unit
            return f"{size / factor:.3g} {unit}"
    return f"{size} B" if size else "-"
