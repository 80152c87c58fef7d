"""Search the mixture of a recipe's hybrid: phases A and B of `manticore run`.

A finished stage is skipped, and `manticore run` with the same recipe and folder goes on from here.

Example:
    manticore search recipes/hybrids/quickstart.yaml --out runs/quickstart search.steps=40
"""

from __future__ import annotations

import argparse

from manticore.cli.stages import add_stage_arguments, mixture_lines, run_stages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore search`."""
    add_stage_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Search, then print the mixture and what it cost."""
    experiment = run_stages(args, "search")
    if experiment is None:
        return 0
    from manticore.hybrids.assembly import component_names

    found, settings = experiment.search(), experiment.recipe.search
    names = component_names(experiment.recipe)
    print(f"mixture, by {settings.method}:")
    print("\n".join(mixture_lines(found, names)))
    if settings.finish != "soft":
        print(f"kept for fine-tuning ({settings.finish}):")
        print("\n".join(mixture_lines(found["finished"], names)))
    if found["ledger"]:
        tokens, seconds = found["ledger"]["tokens"], found["ledger"]["seconds"]
        print(f"cost: {tokens:,.0f} tokens, {found['flops']:.3g} FLOPs, {seconds:.1f} s")
    print(f"wrote {experiment.folder.path / 'stages' / 'search.json'}")
    return 0
