"""Carry a pretrained transformer into models with other mixers, and compare the ways to do it.

A recipe names the teacher, the data and the rows: what each student inherits, whether it is first
aligned layer by layer, frozen until the loss improvement threshold, taught by the teacher's
distribution, trained through an adapter, and which layers stay attention. Every row tries the same
learning rates; validation chooses. With --seeds 0,1,2 the chosen rate is trained once for each
seed. What is finished is not done again, so the same command continues after a kill. Each row's
model lands in models/.

Example:
    manticore transfer run recipes/transfer/prose.yaml --out runs/prose train.steps=20
    manticore transfer run recipes/transfer/prose.yaml --dry-run
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manticore.cli.options import (
    add_dry_run,
    add_out,
    add_quiet,
    add_recipe,
    add_trainings,
    command_of,
    overrides_of,
    parse_seeds,
)
from manticore.config import dump_yaml, find_recipe, load_recipe, to_plain
from manticore.config.transfer_recipe import StudentConfig, TransferRecipe
from manticore.runs import RunFolder, atomic_folder, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from manticore.conversion.experiment import TransferExperiment
    from manticore.conversion.plan import TransferPlan
    from manticore.conversion.reading import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore transfer run`."""
    add_recipe(parser)
    add_trainings(parser)
    add_out(parser)
    add_dry_run(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Train what is missing, test, write the table and the models."""
    from manticore.cli.quiet import quiet_transformers

    quiet_transformers()
    recipe = load_recipe(TransferRecipe, args.recipe, overrides_of(args))
    seeds = parse_seeds(args.seeds) or [recipe.seed]
    out = args.out or Path("runs") / recipe.name
    base = find_recipe(args.recipe).parent
    from manticore.conversion.experiment import TransferExperiment, trial_recipe
    from manticore.conversion.planned_rows import plan_rows
    from manticore.conversion.teacher import checked_teacher, prepared
    from manticore.reports.transfer import transfer_text
    from manticore.text.corpora import check_there
    from manticore.text.prepared import resolve_path

    if args.dry_run:
        for text in recipe.data.sources:
            check_there(resolve_path(text.path, base))
        teacher, _ = checked_teacher(recipe, base)
        print("\n".join(describe(recipe, checked_source(teacher), seeds, out)))
        return 0
    # Rows that cannot be and text that does not do are told before there is a folder.
    plans = plan_rows(recipe, checked_source(prepared(trial_recipe(recipe), base).source))
    folder = RunFolder(out).open({**to_plain(recipe), "seeds": seeds})
    experiment = TransferExperiment(recipe, folder, base, seeds, args.processes, not args.quiet)
    result = folder.result() or finish(experiment, plans, command_of("transfer run", args))
    print("\n".join(transfer_text(result)))
    print(f"wrote {out / 'report.html'}, {out / 'table.md'} and {out / 'models'}")
    return 0


def checked_source(teacher: PreTrainedModel) -> Source:
    """The teacher as plans read it, all its numbers finite."""
    from manticore.conversion.reading import check_finite, read_source

    source = read_source(teacher)
    check_finite(source)
    return source


def finish(
    experiment: TransferExperiment, plans: dict[str, TransferPlan], command: str
) -> dict[str, Any]:
    """All stages, then result, report and models."""
    from manticore.reports.transfer import transfer_markdown, write_transfer_report

    folder = experiment.folder
    result = {
        "verb": "transfer run",
        "command": command,
        **experiment.result(),
        "plans": {name: plan.to_dict() for name, plan in plans.items()},
        "samples": experiment.samples(),
    }
    write_models(experiment, result)
    write_text(folder.path / "table.md", transfer_markdown(result) + "\n")
    folder.write_result(result)
    write_transfer_report(folder.path / "result.json", folder.path / "report.html")
    return result


def write_models(experiment: TransferExperiment, result: dict[str, Any]) -> None:
    """Each row's model of the first seed, as a folder that transformers loads with manticore."""
    from manticore.conversion.student_trials import trained_student
    from manticore.conversion.teacher import teacher_tokenizer

    recipe = experiment.recipe
    tokenizer = teacher_tokenizer(recipe, experiment.base)
    for row in result["rows"]:
        target = experiment.folder.path / "models" / row["id"]
        if target.exists():
            continue
        one = {**row, "seed": row["seeds"][0]}
        model = trained_student(recipe, one, experiment.base, experiment.folder.path)
        with atomic_folder(target) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)


def describe(recipe: TransferRecipe, source: Source, seeds: list[int], out: Path) -> list[str]:
    """What a dry run prints: the recipe, every row's plan and cost, trainings and files."""
    from manticore.conversion.plan import table_lines
    from manticore.conversion.planned_rows import plan_rows, row_flops

    plans = plan_rows(recipe, source)
    lines = [dump_yaml(recipe).rstrip()]
    by_plan: dict[Any, list[str]] = {}
    for name, plan in plans.items():
        by_plan.setdefault(plan.rows, []).append(name)
    for rows, names in by_plan.items():
        lines += [f"the plan of {', '.join(names)}:", *table_lines(rows)]
    for row in recipe.rows:
        plan = plans[row.id]
        lines.append(f"{row.id}: {plan.parameters:,} parameters, {_stages(recipe, row)}")
        lines += [f"  {line}" for line in plan.summary_lines()]
        most = "at most " if row.freeze else ""
        lines.append(f"  a training: {most}{row_flops(recipe, row, source, plan):.2e} FLOPs")
    tried = len(recipe.rates) or 1
    count = sum(1 if row.lr else tried for row in recipe.rows) + len(recipe.rows) * (len(seeds) - 1)
    wider = (
        ", and at most two more for each row whose best rate lies at an end" if tried > 2 else ""
    )
    row_tokens = recipe.train.batch_size * recipe.data.seq_len
    return [
        *lines,
        f"trainings: {count}{wider}; {recipe.train.steps:,} steps of {row_tokens:,} tokens for a "
        "row of length 1",
        f"would write: {out}/result.json, table.md, report.html, models/, rows/, trials/",
    ]


def _stages(recipe: TransferRecipe, row: StudentConfig) -> str:
    align, steps = recipe.steps_of(row)
    stages = [f"align {align} steps"] if align else []
    if steps:
        how = [word for word in ("freeze", "distil") if getattr(row, word)]
        how += [row.adapter.method] if row.adapter else []
        stages.append(f"train {steps} steps" + (f" ({', '.join(how)})" if how else ""))
    return "transfer, " + ", ".join(stages)
