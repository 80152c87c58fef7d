"""Search the shape of MoRe adapters under a budget of parameters, beside other methods.

One look at the data (a gradient, or a short full-rank run) proposes blocks and ranks for every
kind of module; successive halving trains it against shapes that are the same everywhere; what is
left joins the recipe's methods in one table, with the same search for a learning rate. The recipe
needs a section `search` with a budget. The best shape by validation is written as winner.yaml, a
recipe's `methods`, and as arguments of MoReConfig. What is finished is not done again, so the same
command continues after a kill.

Example:
    manticore adapt search recipes/more/search.yaml --seeds 0,1,2 --out runs/search
    manticore adapt search recipes/more/search.yaml --dry-run search.budget=10000
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from manticore.cli.adapt_run import (
    add_arguments,
    check_methods,
    describe,
    open_experiment,
    subject_of,
)
from manticore.cli.options import command_of, overrides_of, parse_seeds
from manticore.config import find_recipe, load_recipe
from manticore.config.adapter_recipe import AdaptRecipe, MethodConfig
from manticore.config.numbers import check_least, check_rates
from manticore.reports.adapter_search import search_markdown, search_text, write_search_report
from manticore.runs import write_text

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> int:
    """Search what is missing, test, write table, front and shapes."""
    from manticore.cli.quiet import quiet_transformers

    quiet_transformers()
    recipe = load_recipe(AdaptRecipe, args.recipe, overrides_of(args))
    check_methods(recipe)
    check_search(recipe, str(args.recipe))
    check_shapes(recipe, find_recipe(args.recipe).parent)
    seeds = parse_seeds(args.seeds) or [recipe.seed]
    out = args.out or Path("runs") / recipe.name
    if args.dry_run:
        print("\n".join(describe_search(recipe, find_recipe(args.recipe).parent, seeds, out)))
        return 0
    experiment = open_experiment(recipe, args, seeds, out)
    result = experiment.folder.result() or finish(experiment, command_of("adapt search", args))
    write_text(out / "table.md", search_markdown(result) + "\n")
    write_text(out / "winner.yaml", result["winner"]["recipe"])
    write_search_report(out / "result.json", out / "report.html")
    print("\n".join(search_text(result)))
    print(f"wrote {out / 'report.html'}, {out / 'table.md'} and {out / 'winner.yaml'}")
    return 0


def check_search(recipe: AdaptRecipe, name: str) -> None:
    """Raise unless the recipe has a search that can be done."""
    if recipe.search is None:
        raise ValueError(
            f"{name} has no section `search`. Add one with a budget, as in\n"
            "search: {budget: 20000}"
        )
    search = recipe.search
    shapes = {"nblocks": search.nblocks, "block_ranks": search.block_ranks, "rungs": search.rungs}
    for key, values in shapes.items():
        if not values or min(values) < 1:
            raise ValueError(f"search.{key}={list(values)}: give whole numbers, at least 1.")
    if list(search.rungs) != sorted(set(search.rungs)):
        raise ValueError(f"search.rungs={list(search.rungs)}: every rung is longer than the last.")
    check_least(
        {"search.budget": (search.budget, 1), "search.probe_steps": (search.probe_steps, 1)}
    )
    check_rates("search.probe_lr", [search.probe_lr])
    if not 0 < search.keep < 1 or search.finalists < 1 or search.candidates < search.finalists:
        raise ValueError(
            f"search.keep={search.keep:g}, finalists={search.finalists}, "
            f"candidates={search.candidates}: keep is between 0 and 1, and there is at least one "
            "finalist and as many candidates."
        )


def check_shapes(recipe: AdaptRecipe, base: Path) -> None:
    """Raise where no target matches, or no shape fits; a model that is not here is not asked."""
    import torch

    from manticore.tuning.models import shell_model
    from manticore.tuning.shape_search import kinds_within

    assert recipe.search is not None
    method = MethodConfig(id="full", label="full", method="full")
    try:
        with torch.device("meta"):
            kinds_within(shell_model(recipe, method, base), recipe.search)
    except FileNotFoundError:
        return


def finish(experiment: Any, command: str) -> dict[str, Any]:
    """The search, then its result."""
    from manticore.tuning.shape_search import search_shapes

    recipe, folder = experiment.recipe, experiment.folder
    result = {
        "verb": "adapt search",
        "name": recipe.name,
        "command": command,
        "subject": subject_of(recipe),
        "metrics": list(recipe.evaluate.metrics),
        **search_shapes(experiment),
    }
    folder.write_result(result)
    return result


def describe_search(recipe: AdaptRecipe, base: Path, seeds: list[int], out: Path) -> list[str]:
    """What a dry run prints."""
    search = recipe.search
    assert search is not None
    shapes = len(search.nblocks) * len(search.block_ranks)
    rungs = " and ".join(str(steps) for steps in search.rungs)
    return [
        *describe(recipe, base, seeds, out)[:-1],
        f"search: {shapes} shapes for each kind of module within {search.budget:,} parameters; "
        f"{search.probe} of {search.probe_steps} steps, then at most {search.candidates} "
        f"candidates, rungs of {rungs} steps; {search.finalists} join the table",
        f"would write: {out}/result.json, table.md, winner.yaml, report.html, rows/, trials/",
    ]
