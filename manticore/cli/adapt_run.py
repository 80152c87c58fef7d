"""Fine-tune one pretrained model by several methods and compare them in one table.

A recipe names the model, the data and the methods: full fine-tuning or any method of PEFT
that changes modules. Every method tries the same learning rates; validation chooses. With --seeds
0,1,2 the chosen rate is trained once for each seed. What is finished is not done again, so the
same command continues after a kill. Each method's model or adapter lands in models/ with a card.

Example:
    manticore adapt run recipes/more/maths.yaml --out runs/maths train.steps=20
    manticore adapt run recipes/more/gsm8k.yaml --dry-run
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

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
from manticore.config.adapter_recipe import AdaptRecipe
from manticore.reports.adapters import method_markdown, method_text, write_method_report
from manticore.runs import RunFolder, atomic_folder, write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore adapt run`."""
    add_recipe(parser)
    add_trainings(parser)
    add_out(parser)
    add_dry_run(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Train what is missing, test, write the table and the models."""
    from manticore.cli.quiet import quiet_transformers

    quiet_transformers()
    recipe = load_recipe(AdaptRecipe, args.recipe, overrides_of(args))
    check_methods(recipe)
    seeds = parse_seeds(args.seeds) or [recipe.seed]
    out = args.out or Path("runs") / recipe.name
    if args.dry_run:
        print("\n".join(describe(recipe, find_recipe(args.recipe).parent, seeds, out)))
        return 0
    experiment = open_experiment(recipe, args, seeds, out)
    result = experiment.folder.result() or finish(experiment, command_of("adapt run", args))
    write_text(out / "table.md", method_markdown(result) + "\n")
    write_method_report(out / "result.json", out / "report.html")
    print("\n".join(method_text(result)))
    print(f"wrote {out / 'report.html'}, {out / 'table.md'} and {out / 'models'}")
    return 0


def check_methods(recipe: AdaptRecipe) -> None:
    """Every method and every setting exists, before anything is read."""
    from manticore.tuning.methods import FULL, check_method, method_config
    from manticore.tuning.metrics import check_pattern
    from manticore.tuning.trial import train_config

    check_pattern(recipe.evaluate.answer_pattern)
    train_config(recipe, max(1, recipe.train.steps), recipe.train.lr)
    for method in recipe.methods:
        if method.method == FULL:
            check_method(method.method, method.settings)
        else:
            method_config(method.method, method.settings, None)


def open_experiment(
    recipe: AdaptRecipe, args: argparse.Namespace, seeds: list[int], out: Path
) -> Any:
    """The experiment in its run folder, which may be new or half done.

    What cannot be read or adapted is told first: a refused recipe leaves no folder behind, which
    would not take the mended one.
    """
    from manticore.tuning.experiment import TuningExperiment

    base, folder = find_recipe(args.recipe).parent, RunFolder(out)
    if folder.result() is None:
        check_inputs(recipe, base)
    folder.open({**to_plain(recipe), "seeds": seeds})
    return TuningExperiment(recipe, folder, base, seeds, args.processes, not args.quiet)


def check_inputs(recipe: AdaptRecipe, base: Path) -> None:
    """Every method fits the model, and the data can be read, before anything is trained."""
    from manticore.tuning.trial import prepared

    parameter_lines(recipe, base)
    prepared(recipe, base)


def finish(experiment: Any, command: str) -> dict[str, Any]:
    """All stages, then models and result."""
    from manticore.tuning.experiment import judge
    from manticore.tuning.search_findings import front_of
    from manticore.tuning.trial import prepared

    recipe, folder = experiment.recipe, experiment.folder
    _, data = prepared(recipe, experiment.base)
    rows = experiment.rows()
    metrics = list(recipe.evaluate.metrics)
    result = {
        "verb": "adapt run",
        "name": recipe.name,
        "command": command,
        "subject": subject_of(recipe),
        "metrics": metrics,
        "rows": rows,
        "front": front_of(rows, metrics[0]),
        "untouched": {} if data.labels else experiment.untouched(),
        "goals": judge(rows, recipe.goals, metrics[0]),
        "data": data.record,
        "labels": list(data.labels),
    }
    write_models(experiment, result)
    folder.write_result(result)
    return result


def write_models(experiment: Any, result: dict[str, Any]) -> None:
    """Each method's model of the first seed, as a folder that PEFT or transformers loads."""
    from manticore.tuning.card import adapter_card
    from manticore.tuning.trial import prepared, row_folder, trained_model

    recipe, table = experiment.recipe, method_markdown(result)
    tokenizer, _ = prepared(recipe, experiment.base)
    for row in result["rows"]:
        target = experiment.folder.path / "models" / row["id"]
        if target.exists():
            continue
        best = {"id": row["id"], "seed": row["seeds"][0], "lr": row["lr"]}
        best["folder"] = row_folder(row["id"], row["lr"], best["seed"])
        model: Any = trained_model(recipe, best, experiment.base, experiment.folder.path)
        with atomic_folder(target) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            write_text(folder / "README.md", adapter_card(recipe, result, table, row["id"]))


def describe(recipe: AdaptRecipe, base: Path, seeds: list[int], out: Path) -> list[str]:
    """What a dry run prints: the recipe, each method's parameters, trainings and files.

    Nothing is read but the model's configuration. No hub is asked for one: where it is not on
    this machine, the parameters are left out.
    """
    lines = [dump_yaml(recipe).rstrip(), *parameter_lines(recipe, base)]
    tried = len(recipe.rates.rates) or 1
    count = sum(1 if m.lr else tried for m in recipe.methods)
    count += len(recipe.methods) * (len(seeds) - 1)
    wider = ""
    if tried >= 3 and recipe.rates.extensions:
        wider = f", and {recipe.rates.extensions} more at most for each method whose best rate "
        wider += "lies at an end"
    return [
        *lines,
        f"trainings: {count}{wider}; each {length_of(recipe)}",
        f"would write: {out}/result.json, table.md, report.html, models/, rows/, trials/",
    ]


def length_of(recipe: AdaptRecipe) -> str:
    """How long one training is, in words."""
    train = recipe.train
    steps = f"{train.steps:,} steps" if train.steps else f"{train.epochs:g} epochs"
    return f"{steps} of {train.batch_size} rows of at most {recipe.data.seq_len} tokens"


def subject_of(recipe: AdaptRecipe) -> str:
    """The model, the kind of data and the length of a training, for the report."""
    name = recipe.model.name or Path(recipe.model.path).name
    return f"{name} on {recipe.data.format} data; every training is {length_of(recipe)}."


def parameter_lines(recipe: AdaptRecipe, base: Path) -> list[str]:
    """Trained parameters and training FLOPs per token of every method, without reading weights."""
    import torch

    from manticore.evaluation.memory_shadow import UnknownMemoryError
    from manticore.tuning.methods import trainable_parameters
    from manticore.tuning.models import shell_model

    lines = []
    for method in recipe.methods:
        try:
            with torch.device("meta"):
                model = shell_model(recipe, method, base)
        except FileNotFoundError as error:
            return [f"parameters: unknown, {error}"]
        except UnknownMemoryError:
            lines.append(f"{method.id}: parameters unknown, {method.method} needs the weights")
            continue
        total = sum(p.numel() for p in model.parameters())
        trained = trainable_parameters(model)
        # Forward and the gradient of activations pass every weight, that of weights the trained.
        flops = 4 * total + 2 * trained
        lines.append(
            f"{method.id}: {trained:,} of {total:,} parameters trained, about {flops:.2e} FLOPs "
            "per token of training"
        )
    return lines
