"""Run a recipe from beginning to end: pretraining of a zoo model, or a hybrid and its report.

A finished stage is skipped, a killed run goes on where it stopped, and the same recipe in
another folder gives the same numbers.

Example:
    manticore run recipes/hybrids/quickstart.yaml --out runs/quickstart finetune.steps=50
"""

from __future__ import annotations

import argparse
from pathlib import Path

from manticore.cli.options import (
    add_dry_run,
    add_out,
    add_quiet,
    add_recipe,
    overrides_of,
    positive,
)
from manticore.config import ConfigError, load_recipe, recipe_kind, to_plain
from manticore.config.kinds import RECIPE_KINDS
from manticore.config.locate import find_recipe
from manticore.runs import RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore run`."""
    add_recipe(parser)
    add_out(parser)
    add_dry_run(parser)
    add_quiet(parser)
    parser.add_argument(
        "--seeds",
        default=None,
        metavar="0,1,2",
        help="hybrids: run once for each seed and combine the tables with mean and spread",
    )
    parser.add_argument(
        "--processes",
        type=positive,
        default=None,
        help="trainings at a time (default: cores, max 2)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the recipe."""
    kind = recipe_kind(args.recipe, tuple(RECIPE_KINDS))
    if RECIPE_KINDS[kind].verb != "run":
        raise ConfigError(
            f"'{args.recipe}' is a recipe of kind '{kind}', which `manticore run` does not run. "
            f"Use `manticore {RECIPE_KINDS[kind].verb} {args.recipe}`."
        )
    return {"pretrain": _run_pretrain, "hybrid": _run_hybrid}[kind](args)


def run_folder(args: argparse.Namespace, name: str) -> RunFolder:
    """The folder of the run: --out, or runs/NAME."""
    return RunFolder(args.out or Path("runs") / name)


def _run_pretrain(args: argparse.Namespace) -> int:
    from manticore.cli.pretraining import describe_pretraining, pretrain
    from manticore.cli.quiet import quiet_transformers
    from manticore.config.pretrain_recipe import PretrainRecipe

    if args.seeds is not None or args.processes is not None:
        raise ConfigError("--seeds and --processes are for hybrids. Set `seed` in the recipe.")
    quiet_transformers()
    recipe = load_recipe(PretrainRecipe, args.recipe, overrides_of(args))
    base = find_recipe(args.recipe).parent
    folder = run_folder(args, recipe.name)
    if args.dry_run:
        print(describe_pretraining(recipe, folder, base))
        return 0
    folder.open(to_plain(recipe))
    record = folder.result() or pretrain(recipe, folder, base, progress=not args.quiet)
    losses = ", ".join(f"{k} {v:.3f}" for k, v in record["test"]["loss"].items())
    print(f"{recipe.name}: test nats per token {losses}; model in {folder.path / 'model'}")
    return 0


def _run_hybrid(args: argparse.Namespace) -> int:
    from manticore.cli.hybrid_run import run_hybrid_verb

    return run_hybrid_verb(args)
