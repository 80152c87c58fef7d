"""What the verbs of single stages share: build, search and finetune work in a run's folder.

They write what `manticore run` would write there, so `run` goes on after them and they skip what
`run` has finished.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manticore.cli.options import add_dry_run, add_out, add_quiet, add_recipe, overrides_of
from manticore.config import dump_yaml, find_recipe, load_recipe, recipe_kind, to_plain
from manticore.config.recipes import HybridRecipe
from manticore.runs import RunFolder

if TYPE_CHECKING:
    from manticore.hybrids.experiment import Experiment

# Stage -> its title, and what it writes beside its record.
STAGES = {
    "projectors": ("A  projectors", "start/"),
    "search": ("B  search", "search/"),
    "finetune": ("C  fine-tuning", "rows/, trials/"),
}


def add_stage_arguments(parser: argparse.ArgumentParser, recipe_required: bool = True) -> None:
    """Add what a stage needs: the recipe and the run's folder."""
    add_recipe(parser, required=recipe_required)
    add_out(parser, what="folder of the run, shared with `manticore run` (default: runs/NAME)")
    add_dry_run(parser)
    add_quiet(parser)


def run_stages(args: argparse.Namespace, last: str) -> Experiment | None:
    """Run the stages up to `last`; finished ones are skipped. None after a dry run."""
    from manticore.cli.quiet import quiet_transformers

    quiet_transformers()
    recipe_kind(args.recipe, ("hybrid",))
    recipe = load_recipe(HybridRecipe, args.recipe, overrides_of(args))
    base = find_recipe(args.recipe).parent
    out = args.out or Path("runs") / recipe.name
    if args.dry_run:
        print(describe_stages(recipe, base, out, last))
        return None
    experiment = open_experiment(recipe, base, out, args)
    for stage in stages_until(last):
        if not args.quiet:
            state = "finished earlier" if experiment.folder.is_done(stage) else "..."
            print(f"{STAGES[stage][0]} {state}", file=sys.stderr, flush=True)
        getattr(experiment, stage)()
    return experiment


def open_experiment(
    recipe: HybridRecipe, base: Path, out: Path, args: argparse.Namespace
) -> Experiment:
    """Check the recipe against its inputs, then open the run folder."""
    from manticore.hybrids.checks import check_data, check_recipe
    from manticore.hybrids.experiment import Experiment

    processes = getattr(args, "processes", None)
    if processes is None:
        processes = min(2, os.cpu_count() or 1)
    check_recipe(recipe, base)
    folder = RunFolder(out)
    if not folder.is_done("projectors"):  # that stage has read the text, and the run may be over
        check_data(recipe, base)
    folder.open(to_plain(recipe))
    return Experiment(recipe, folder, base, processes=processes, progress=not args.quiet)


def stages_until(last: str) -> list[str]:
    """Names of the stages up to and including `last`."""
    names = list(STAGES)
    return names[: names.index(last) + 1]


def describe_stages(recipe: HybridRecipe, base: Path, out: Path, last: str) -> str:
    """What a dry run prints: recipe, parameters, FLOPs, files."""
    from manticore.hybrids.checks import check_recipe, recipe_config

    check_recipe(recipe, base)
    config = recipe_config(recipe, base)
    written = [f"{STAGES[stage][1]}, stages/{stage}.json" for stage in stages_until(last)]
    common = "recipe.yaml, environment.json, metrics.jsonl"
    return "\n".join(
        [
            dump_yaml(recipe).rstrip(),
            "",
            describe_cost(config, recipe.data.seq_len),
            f"would write: {out}/{common}, {', '.join(written)}",
        ]
    )


def describe_cost(config: Any, seq_len: int) -> str:
    """Parameters and FLOPs of a hybrid, and the part that the maps between components take."""
    from manticore.hybrids.costs import hybrid_cost

    cost = hybrid_cost(config, seq_len=seq_len)
    return (
        f"parameters: {cost.parameters:,}, of which projectors {cost.stored['projectors']:,}\n"
        f"forward pass: {cost.forward.total:.3g} FLOPs per token at {seq_len} tokens, of which "
        f"projectors {100 * cost.projector_flops_share:.1f} %"
    )


def mixture_lines(values: dict[str, Any], names: list[str]) -> list[str]:
    """Mixture rows as text, one line for each block; embeddings and heads if they have a row."""
    rows = [(f"block {block + 1}", row) for block, row in enumerate(values["mixture"])]
    if values["embed"] is not None:
        rows.insert(0, ("embeddings", values["embed"]))
    if values["head"] is not None:
        rows.append(("heads", values["head"]))
    return [
        f"  {title:10}  " + "  ".join(f"{n} {w:.3f}" for n, w in zip(names, row, strict=True))
        for title, row in rows
    ]
