"""Say how much memory each stage of a recipe takes, and what to change so that it fits.

No weights are read and nothing is trained: every step is made once with tensors that have shapes
and no data, and counted. Weights, gradients, optimizer, activations and cache are those of the
moment at which their sum is largest. On a CPU the sum is what torch allocates, within a few
percent. Not counted: the program itself (about 0.5 GB for each process), scratch space inside
kernels, what an allocator holds and does not use, a GPU's context, and the moment of writing a
checkpoint. What an allocator holds on top is not known beforehand: with --gpu a plan is called
tight within 15 % of the memory; with --memory from half of it on, because on a CPU runs were seen
to hold up to twice what their tensors take. A plan is for one training at a time.
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
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manticore.cli.options import add_out, add_quiet, add_recipe, overrides_of
from manticore.config import find_recipe, load_recipe, recipe_kind

if TYPE_CHECKING:
    from manticore.evaluation.memory_plan import Memory, Stage

MARGINS = {"gpu": 0.15, "memory": 1.0}
"""Share by which a run may exceed its plan; what lies within is called tight."""
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SMALLEST = 10**6
"""Less is no memory of a machine but a slip of the unit."""


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

    room = room_of(args)
    quiet_transformers()
    plan = make_plan(args, room)
    if args.out:
        write_json(args.out, plan)
    print(json.dumps(plan, indent=2) if args.json else "\n".join(plan_lines(plan)))
    return 1 if plan["verdict"] == "does not fit" else 0


@dataclass(frozen=True)
class Room:
    """The memory that a run should fit into."""

    size: int
    """Bytes."""
    kind: str
    """gpu or memory."""

    def verdict(self, total: int) -> str:
        """fits, tight or does not fit."""
        if total > self.size:
            return "does not fit"
        return "tight" if total * (1 + MARGINS[self.kind]) > self.size else "fits"


def room_of(args: argparse.Namespace) -> Room | None:
    """What --gpu or --memory gives; None without them."""
    for kind in MARGINS:
        given = getattr(args, kind)
        if given is not None:
            return Room(parse_bytes(given, f"--{kind}"), kind)
    return None


def make_plan(args: argparse.Namespace, room: Room | None) -> dict[str, Any]:
    """The whole plan as plain values."""
    from tqdm import tqdm

    from manticore.cli.plan_changes import measure_changes

    load, stages_of, base = opened(args)
    recipe: Any = load(())
    stages = stages_of(recipe, base, False)
    bar = tqdm(stages, desc="stages", leave=False, disable=args.quiet, file=sys.stderr)
    measured, unknown = measure(bar)
    total = max(memory.total for memory in measured.values())
    changes = []
    size = room.size if room else None

    def verdict(total: int) -> str | None:
        return room.verdict(total) if room else None

    if room is None or total > room.size:

        def rebuild(change: Any) -> Any:
            changed = stages_of(load(change.keys), base, change.adapters)
            return [stage for stage in changed if stage.name not in unknown]

        found = measure_changes(recipe, rebuild, measured, size)
        for outcome in tqdm(found, desc="changes", leave=False, disable=args.quiet):
            change = {"title": outcome.change.title, "keys": list(outcome.change.keys)}
            changes.append({**change, "total": outcome.total, "verdict": verdict(outcome.total)})
    return {
        "verb": "plan",
        "recipe": str(args.recipe),
        "overrides": list(overrides_of(args)),
        "kind": recipe.kind,
        "budget": size,
        "total": total,
        "verdict": verdict(total),
        "stages": [
            {"name": name, **memory.to_dict(), "verdict": verdict(memory.total)}
            for name, memory in measured.items()
        ],
        "unknown": unknown,
        "changes": changes,
    }


def measure(stages: Iterable[Stage]) -> tuple[dict[str, Memory], dict[str, str]]:
    """Memory of every stage, and why that of some cannot be told; raises if that is all."""
    from manticore.evaluation.memory_shadow import UnknownMemoryError

    measured, unknown = {}, {}
    for stage in stages:
        try:
            measured[stage.name] = stage.measure()
        except UnknownMemoryError as error:
            unknown[stage.name] = str(error)
    if not measured:
        raise ValueError(next(iter(unknown.values())))
    return measured, unknown


def opened(args: argparse.Namespace) -> tuple[Any, Any, Path]:
    """How to read the recipe with more overrides, how to make its stages, and its folder."""
    from manticore.cli.plan_stages import KINDS

    kind = KINDS[recipe_kind(args.recipe, tuple(KINDS))]

    def load(more: tuple[str, ...]) -> Any:
        recipe: Any = load_recipe(kind.recipe, args.recipe, (*overrides_of(args), *more))
        kind.check(recipe, find_recipe(args.recipe).parent)
        return recipe

    return load, kind.stages, find_recipe(args.recipe).parent


def parse_bytes(text: str, name: str = "memory", smallest: int = _SMALLEST) -> int:
    """`80GB` or `16GiB` as bytes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found and not found[2] and float(found[1]):
        raise ValueError(
            f"{name} {text} has no unit. Write {found[1]}GB (10^9 bytes), {found[1]}GiB (2^30 "
            "bytes) or an amount in KB, MB, TB, KiB, MiB or TiB."
        )
    size = round(float(found[1]) * _UNITS.get(found[2].upper(), 0)) if found else 0
    if size < smallest:
        more = " 1MB or more," if smallest == _SMALLEST else ""
        raise ValueError(
            f"{name} {text} is no amount of memory. Give{more} an amount like 80GB, 16GiB or 512MB."
        )
    return size


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
    lines += [f"not told: {name}. {why}" for name, why in plan["unknown"].items()]
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
