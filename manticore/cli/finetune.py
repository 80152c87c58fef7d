"""Fine-tune a recipe's hybrid and its baselines: phases A, B and C of `manticore run`.

A finished stage is skipped, a killed training goes on from its last checkpoint, and
`manticore run` with the same recipe and folder then tests every row and writes the report.

Example:
    manticore finetune recipes/hybrids/quickstart.yaml --out runs/quickstart finetune.steps=50
"""

from __future__ import annotations

import argparse
from typing import Any

from manticore.cli.options import positive
from manticore.cli.stages import add_stage_arguments, run_stages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore finetune`."""
    add_stage_arguments(parser)
    parser.add_argument(
        "--processes",
        type=positive,
        default=None,
        help="trainings at a time (default: cores, max 2)",
    )


def run(args: argparse.Namespace) -> int:
    """Fine-tune, then print the validation loss of every row."""
    experiment = run_stages(args, "finetune")
    if experiment is None:
        return 0
    print("\n".join(validation_table(experiment.finetune())))
    print(f"wrote {experiment.folder.path / 'rows'}; `manticore run` tests the rows")
    return 0


def validation_table(chosen: dict[str, dict[str, Any]]) -> list[str]:
    """Validation losses of the trained rows, the lowest mean first, and rates that diverged."""
    from manticore.training.rates import divergences

    kinds = list(next(iter(chosen.values()))["loss"])
    kinds = kinds if len(kinds) > 2 else kinds[:1]  # with one kind of text the mean repeats it
    width = max(map(len, chosen))
    columns = [max(len(kind), 6) for kind in kinds]
    lines = [f"validation, nats per token{'':{max(0, width - 26)}}"]
    header = "  ".join(f"{kind:>{n}}" for kind, n in zip(kinds, columns, strict=True))
    lines.append(f"{'':{width}}  {header}  {'lr':>8}")
    for row_id, result in sorted(chosen.items(), key=lambda item: item[1]["loss"]["mean"]):
        losses = (f"{result['loss'][kind]:{n}.3f}" for kind, n in zip(kinds, columns, strict=True))
        lines.append(f"{row_id:{width}}  {'  '.join(losses)}  {result['lr']:8.2g}")
    return lines + divergences([{"label": name, **result} for name, result in chosen.items()])
