"""Put a hybrid together: phase A of a recipe, or plainly from the folders of some models.

With a recipe, the projectors are fitted as it says, and the vocabulary, the fits and the costs
are printed; `manticore run` with the same recipe and folder goes on from there. With --component
(repeated) instead of a recipe, a hybrid at the uniform mixture with plain projectors is written.

Example:
    manticore build recipes/hybrids/quickstart.yaml --out runs/quickstart
    manticore build --component models/pythia --component models/mamba --num-blocks 2 --out hybrid
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from manticore.cli.options import overrides_of
from manticore.cli.stages import add_stage_arguments, describe_cost, run_stages
from manticore.runs import atomic_folder, write_json

RECORD = "build.json"
SEQ_LEN = 128  # at which the cost of a hybrid without a recipe is told


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore build`."""
    add_stage_arguments(parser, recipe_required=False)
    plain = parser.add_argument_group("without a recipe")
    plain.add_argument(
        "--component",
        action="append",
        default=[],
        metavar="PATH",
        help="a pretrained model with its tokenizer; the first one's tokenizer is the hybrid's",
    )
    plain.add_argument("--num-blocks", type=int, metavar="N", help="blocks to cut into (default 1)")
    plain.add_argument("--mixing", choices=("streams", "shared"), help="default streams")
    plain.add_argument("--projectors", choices=("identity", "random"), help="default identity")


def run(args: argparse.Namespace) -> int:
    """Build the hybrid and print what was made."""
    check_arguments(args)
    if args.component:
        return _build_plainly(args)
    experiment = run_stages(args, "projectors")
    if experiment is None:
        return 0
    print("\n".join(describe_start(experiment)))
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """A recipe or components, not both, and no option that would be ignored."""
    given = [f"--{n.replace('_', '-')}" for n in ("num_blocks", "mixing", "projectors")
             if getattr(args, n) is not None]  # fmt: skip
    if args.component and (args.recipe or overrides_of(args)):
        raise ValueError(
            f"Both --component and {args.recipe or overrides_of(args)[0]} are given. Give a "
            "recipe (with key=value) or components (with options), not both."
        )
    if not args.component and not args.recipe:
        raise ValueError("Nothing to build. Give a recipe, or --component PATH for each model.")
    if args.recipe and given:
        raise ValueError(f"{', '.join(given)} cannot change a recipe. Use hybrid.num_blocks=N etc.")
    if args.component and args.out is None:
        raise ValueError("--out is missing: name the folder for the hybrid.")


def describe_start(experiment: Any) -> list[str]:
    """Vocabulary, fits by boundary, and costs of a recipe's fresh hybrid."""
    from manticore.hybrids.assembly import component_names
    from manticore.hybrids.configuration_manticore import ManticoreConfig

    record, recipe = experiment.projectors(), experiment.recipe
    config = ManticoreConfig.from_pretrained(experiment.start)
    lines = ["vocabulary:", *(f"  {line}" for line in record["vocabulary"])]
    if record["fit"]:
        lines.append("fit of the projectors, R squared on the text they were fitted on:")
        lines += fit_lines(record["fit"], component_names(recipe), config.num_blocks)
    lines += [describe_cost(config, recipe.data.seq_len), f"wrote {experiment.start}"]
    return lines


def fit_lines(fits: list[dict[str, Any]], names: list[str], num_blocks: int) -> list[str]:
    """One line for each boundary: how well each stream explains each other one."""
    lines: dict[str, list[str]] = {}
    for fit in sorted(fits, key=lambda fit: fit["boundary"]):
        # Index -1 is the stream that all components share.
        source, target = (
            "shared stream" if fit[end] < 0 else names[fit[end]] for end in ("source", "target")
        )
        place = f"block {fit['boundary'] + 1}" if fit["boundary"] < num_blocks else "the heads"
        lines.setdefault(place, []).append(f"{source} -> {target} {fit['r2']:.3f}")
    return [f"  before {place}: {', '.join(found)}" for place, found in lines.items()]


def _build_plainly(args: argparse.Namespace) -> int:
    from manticore.cli.model_folder import check_output_folder
    from manticore.cli.quiet import quiet_transformers
    from manticore.hybrids.configuration_manticore import ManticoreConfig
    from manticore.models.loading import check_loadable

    quiet_transformers()
    replaces = check_output_folder(args.out, RECORD)
    settings: dict[str, Any] = {
        "num_blocks": args.num_blocks or 1,
        "mixing": args.mixing or "streams",
    }
    configs = [check_loadable(path) for path in args.component]
    vocab_size = configs[0].vocab_size
    config = ManticoreConfig(components=configs, vocab_size=vocab_size, **settings)
    if args.dry_run:
        print(describe_cost(config, SEQ_LEN))
        print(f"would {'replace' if replaces else 'write'} {args.out}")
        return 0
    hybrid = build_from_folders(args.component, args.out, args.projectors or "identity", settings)
    print("vocabulary:")
    print("\n".join(f"  {line}" for line in hybrid.vocabulary_report.lines()))
    print(describe_cost(hybrid.config, SEQ_LEN))
    print(f"{'replaced' if replaces else 'wrote'} {args.out}")
    return 0


def build_from_folders(
    paths: list[str], out: Path, projectors: str, settings: dict[str, Any]
) -> Any:
    """A hybrid of some models at the uniform mixture, saved with the first one's tokenizer."""
    from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
    from manticore.text.tokenizers import load_tokenizer

    tokenizers = [load_tokenizer(path) for path in paths]
    hybrid = ManticoreForCausalLM.from_components(
        paths, tokenizers=tokenizers, projectors=projectors, **settings
    )
    with atomic_folder(out) as target:
        hybrid.save_pretrained(target)
        tokenizers[0].save_pretrained(target)
        write_json(target / RECORD, {"verb": "build", "components": paths, **settings})
    return hybrid
