"""Say which layers of a model an adapter reaches, and why it does not reach the others.

MODEL is a folder or a name on the hub, whose structure is looked at without reading weights;
--gradient loads them and measures by a backward pass. With --family MODEL is a model_type of
transformers: a tiny one with random weights is made and measured. Without --targets the method's
own choice is examined; `--targets default` is ours, which reaches every layer that can take one.

Example:
    manticore adapt coverage nemotron_h --family --method lora
    manticore adapt coverage nemotron_h --family --targets default --method more
    manticore adapt coverage recipes/zoo/mamba-maths --targets default --gradient --out cover.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from manticore.cli.options import add_dry_run, add_out
from manticore.runs import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore adapt coverage`."""
    parser.add_argument("model", metavar="MODEL", help="folder, name, or with --family a family")
    parser.add_argument(
        "--family", action="store_true", help="MODEL is a model_type, such as jamba or falcon_h1"
    )
    parser.add_argument("--method", default="lora", help="any method of PEFT (lora)")
    parser.add_argument(
        "--targets",
        nargs="+",
        metavar="NAME",
        help="module names, default (every layer), or all-linear; without: the method's own",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="key=value",
        help="a setting of the method, as in r=4",
    )
    parser.add_argument(
        "--gradient", action="store_true", help="load the weights and measure by a backward pass"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 if a layer is not reached"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_out(parser, what="JSON file for the report")
    add_dry_run(parser)


def run(args: argparse.Namespace) -> int:
    """Examine and print; nothing is written without --out."""
    from manticore.cli.quiet import quiet_transformers

    quiet_transformers()
    from manticore.cli.model_folder import check_output_file
    from manticore.tuning.methods import check_method

    settings = settings_of(args.settings)
    if args.method == "full":
        raise ValueError("Full fine-tuning has no adapters. Choose a method of PEFT.")
    check_method(args.method, settings)
    check_output_file(args.out, "adapt coverage")
    model = load(args)
    if args.dry_run:
        from manticore.adapters.targets import default_targets

        parameters = sum(p.numel() for p in model.parameters())
        print(f"{type(model).__name__}: {parameters:,} parameters")
        print(f"targets by default: {' '.join(default_targets(model))}")
        print(f"would write {args.out}" if args.out else "would write nothing")
        return 0
    report = examine(model, args, settings)
    record = {"verb": "adapt coverage", "model": args.model, "method": args.method, **report[1]}
    if args.out:
        write_json(args.out, record)
    print(json.dumps(record, indent=2) if args.json else "\n".join(report[0].lines()))
    return 1 if args.strict and not report[0].is_complete else 0


def load(args: argparse.Namespace) -> Any:
    """The model: tiny and random, or from its folder, with weights only if they are needed."""
    if args.family:
        from manticore.tuning.families import random_model

        return random_model(args.model)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from manticore.models.weight_files import first_line

    path = Path(args.model)
    if path.exists() and not (path / "config.json").is_file():
        raise ValueError(f"{path} holds no config.json. Give the folder of a model.")
    try:
        if args.gradient:
            return AutoModelForCausalLM.from_pretrained(
                args.model, dtype=torch.float32, use_safetensors=True
            )
        config = AutoConfig.from_pretrained(args.model)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{args.model} cannot be loaded: {first_line(error)}. Give the folder of a causal "
            "language model, its name on the hub, or a model_type with --family."
        ) from error


def examine(
    model: Any, args: argparse.Namespace, settings: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The report, and what the record says of it."""
    import warnings

    from manticore.adapters.uncovered import UncoveredLayersWarning
    from manticore.tuning.coverage import coverage
    from manticore.tuning.methods import adapt

    targets: Any = args.targets
    if targets and len(targets) == 1 and targets[0] in ("default", "all-linear"):
        targets = targets[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncoveredLayersWarning)  # the report says more
        wrapped = adapt(model, args.method, settings, targets)
    report = coverage(wrapped, gradient=args.family or args.gradient)
    named = getattr(wrapped, "peft_config", {}).get("default")
    found = getattr(named, "target_modules", None)
    names = sorted(found) if isinstance(found, set | list) else found
    return report, {"targets": names, "complete": report.is_complete, "report": report.to_dict()}


def settings_of(texts: list[str]) -> dict[str, Any]:
    """key=value words as a dictionary; values are read as YAML."""
    import yaml

    settings = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise ValueError(f"--set {text} is not of the form key=value.")
        settings[key] = yaml.safe_load(value)
    return settings
