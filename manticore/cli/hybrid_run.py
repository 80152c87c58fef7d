"""The main job from the command line: the order of its phases, seeds, table and report."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

from manticore.cli.options import overrides_of, parse_seeds
from manticore.cli.quiet import quiet_transformers
from manticore.cli.stages import STAGES, mixture_lines, open_experiment
from manticore.config import dump_yaml, find_recipe, load_recipe
from manticore.config.recipes import HybridRecipe
from manticore.reports import text_table, write_report
from manticore.reports.headline import other_budget
from manticore.runs import RunFolder, environment, write_json


def run_hybrid_verb(args: argparse.Namespace) -> int:
    """Run a hybrid recipe once, or once for each of `--seeds`."""
    quiet_transformers()
    recipe = load_recipe(HybridRecipe, args.recipe, overrides_of(args))
    source = find_recipe(args.recipe)
    out = Path(args.out or Path("runs") / recipe.name)
    seeds = parse_seeds(args.seeds)
    if args.dry_run:
        print(describe_run(recipe, source.parent, out))
        return 0
    command = shlex.join(["manticore", "run", *_words(args)])
    if seeds is None:
        result = run_once(recipe, source.parent, out, args, command)
        _finish(out, result, expected_beside(source), args)
        return 0
    return _run_seeds(recipe, source, out, seeds, args, command)


def run_once(
    recipe: HybridRecipe, base: Path, out: Path, args: argparse.Namespace, command: str
) -> dict[str, Any]:
    """All phases of one seed; a finished run is read back."""
    from manticore.hybrids.goals import judge
    from manticore.hybrids.outcome import build_result
    from manticore.training.events import write_events

    folder = RunFolder(out)
    experiment = open_experiment(recipe, base, out, args)
    finished = folder.result()
    if finished is not None:
        return finished
    for stage, (title, _) in STAGES.items():
        _say(args, f"{title} {'finished earlier' if folder.is_done(stage) else '...'}")
        getattr(experiment, stage)()
        _say(args, textwrap.indent("\n".join(stage_lines(experiment, stage)), "   "))
    _say(args, "D  test, samples, report ...")
    result = build_result(experiment, command)
    result["goals"] = judge(result["rows"], result["kinds"])
    write_events(folder.metrics(), folder.path / "tensorboard")
    folder.write_result(result)
    return result


def stage_lines(experiment: Any, stage: str) -> list[str]:
    """What a person wants to know after a stage."""
    from manticore.cli.build import describe_start
    from manticore.cli.finetune import validation_table
    from manticore.hybrids.assembly import component_names

    if stage == "projectors":
        return describe_start(experiment)
    if stage == "search":
        names = component_names(experiment.recipe)
        return mixture_lines(experiment.search()["finished"], names)
    return validation_table(experiment.finetune())


def _run_seeds(
    recipe: HybridRecipe,
    source: Path,
    out: Path,
    seeds: list[int],
    args: argparse.Namespace,
    command: str,
) -> int:
    from manticore.hybrids.goals import judge
    from manticore.reports.records import combine_seeds

    results: list[dict[str, Any]] = []
    for seed in seeds:
        _say(args, f"seed {seed}")
        one = dataclasses.replace(recipe, seed=seed)
        if results:  # the first seed has chosen the learning rates, on validation
            rates = {row["id"]: row["lr"] for row in results[0]["rows"] if row.get("lr")}
            compare = dataclasses.replace(one.compare, row_lr=rates, lr_factors=(1.0,))
            one = dataclasses.replace(one, compare=compare)
        results.append(run_once(one, source.parent, out / f"seed-{seed}", args, command))
    rows = combine_seeds(results)
    kinds = results[0]["kinds"]
    table = {
        "schema": 1,
        "command": command,
        "seeds": seeds,
        "kinds": kinds,
        "rows": rows,
        "goals": judge(rows, kinds),
        "environment": environment(),
    }
    write_json(out / "expected.json", table)
    print(text_table(rows, kinds))
    _print_goals(table["goals"])
    for seed in seeds:
        write_report(out / f"seed-{seed}", expected=out / "expected.json")
    print(f"table: {out / 'expected.json'}")
    return 0


def describe_run(recipe: HybridRecipe, base: Path, out: Path) -> str:
    """What a dry run prints: recipe, hybrid, rows, tokens, FLOPs, files."""
    from manticore.hybrids.checks import check_recipe, recipe_config
    from manticore.hybrids.costs import hybrid_cost
    from manticore.hybrids.rows import plan_rows

    check_recipe(recipe, base)
    config = recipe_config(recipe, base)
    cost = hybrid_cost(config, seq_len=recipe.data.seq_len)
    rows = plan_rows(recipe, {"mixture": None, "embed": None, "head": None}, config, 0.0)
    tokens = recipe.finetune.steps * recipe.finetune.batch_size * recipe.data.seq_len
    lines = [
        dump_yaml(recipe).rstrip(),
        "",
        f"parameters: {cost.parameters:,}, of which projectors {cost.projectors.parameters:,}",
        f"fine-tuning: {tokens:,} tokens, {cost.training.total * tokens:.2e} FLOPs",
        "rows: " + ", ".join(row.id for row in rows),
        f"would write: {out}/recipe.yaml, environment.json, metrics.jsonl, stages/, start/, "
        "rows/, trials/, model/, result.json, report.html",
    ]
    return "\n".join(lines)


def expected_beside(source: Path) -> Path | None:
    """The committed table of a shipped recipe: NAME.expected.json, or expected.json for one."""
    for name in (f"{source.stem}.expected.json", "expected.json"):
        if (source.parent / name).is_file():
            return source.parent / name
    return None


def _finish(
    out: Path, result: dict[str, Any], expected: Path | None, args: argparse.Namespace
) -> None:
    from manticore.reports.records import load_rows

    print(text_table(result["rows"], result["kinds"]))
    if expected is not None:
        rows = load_rows(expected, result["kinds"])
        tokens = "".join(f" {note}" for note in other_budget(result["rows"], rows))
        print(f"\nCommitted table ({rows[0]['seeds']} seeds, {expected.name}).{tokens}")
        print(text_table(rows, result["kinds"]))
    _print_goals(result["goals"])
    for sample in result["samples"][:1]:
        print(f"\nSample ({sample['settings']}):\n  {sample['prompt']}{sample['text']}")
    print(f"\nreport: {write_report(out, expected=expected)}")


def _print_goals(goals: list[dict[str, Any]]) -> None:
    words = {True: "met    ", False: "NOT MET", None: "open   "}
    print()
    for goal in goals:
        print(f"{words[goal['met']]} {goal['text']}: {goal['detail']}")


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.quiet:
        print(text, file=sys.stderr, flush=True)


def _words(args: argparse.Namespace) -> list[str]:
    seeds = ["--seeds", args.seeds] if args.seeds else []
    return [str(args.recipe), *overrides_of(args), *seeds]
