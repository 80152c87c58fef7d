"""Examine a causal language model: does it compute the same numbers by every road?

MODEL is the folder or the hub name of a hybrid or of any Hugging Face causal language model;
--family examines small random models of a family instead, three configurations of each, and tells
the worst finding; --family all takes all known ones. Each check compares the model with itself run
whole, without padding and without a cache: decoding, prefill in pieces, padding, batches, beams,
generation, saving, bfloat16, gradients, adapters. Exit status 0: all passed; 1: faults were found;
2: bad input.

Example:
    manticore doctor runs/quickstart/model
    manticore doctor --family mamba --check decode chunked-prefill
    manticore doctor --family all --out conformance.json --html conformance.html
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manticore.cli.options import add_dry_run, add_out, add_quiet
from manticore.runs import write_json

if TYPE_CHECKING:
    from manticore.evaluation.conformance import Report

_EXIT_FAULTS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore doctor`."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder or name of a model")
    parser.add_argument("--family", nargs="+", metavar="NAME", help="small random models; or all")
    parser.add_argument(
        "--check", nargs="+", metavar="NAME", help="only these checks (--dry-run lists them)"
    )
    parser.add_argument("--seq-len", type=int, default=20, help="tokens of the longest row (20)")
    parser.add_argument("--seed", type=int, default=0, help="draws tokens and small models (0)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the findings as a page")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write them as a table")
    add_out(parser, what="JSON file for the findings")
    add_dry_run(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Examine and print; nothing is written without --out, --html or --markdown."""
    from manticore.cli.model_folder import check_output_file
    from manticore.cli.quiet import quiet_transformers
    from manticore.evaluation.conformance.doctor import chosen_checks

    if bool(args.model) == bool(args.family):
        raise ValueError("Give either MODEL or --family, as in: manticore doctor --family mamba")
    quiet_transformers()
    targets = [path for path in (args.out, args.html, args.markdown) if path is not None]
    for path in targets:
        check_output_file(path, "doctor")
    checks = chosen_checks(args.check)
    if args.dry_run:
        print(f"would examine {', '.join(_names(args))}")
        print(f"checks: {', '.join(checks)}")
        print(f"would write {', '.join(map(str, targets)) or 'nothing'}")
        return 0
    reports = list(_examine(args, checks))
    _write(args, [report.as_dict() for report in reports])
    if args.json:
        print(json.dumps([report.as_dict() for report in reports], indent=2))
    return 0 if all(report.passed for report in reports) else _EXIT_FAULTS


def _names(args: argparse.Namespace) -> list[str]:
    from manticore.evaluation.conformance.small_models import FAMILIES, small_config

    if not args.family:
        return [args.model]
    names = list(FAMILIES) if args.family == ["all"] else args.family
    for name in names:
        small_config(name)  # raises for a family that is not there, before any work
    return names


def _examine(args: argparse.Namespace, checks: list[str]) -> Iterator[Report]:
    from manticore.evaluation.conformance import doctor, worst_of

    for name in _names(args):
        reports = [
            doctor(
                model,
                checks,
                seq_len=args.seq_len,
                seed=args.seed,
                name=str(name),
                on_check=None if args.quiet else _say,
            )
            for model in _models(args, name)
        ]
        report = worst_of(reports, str(name))
        if not args.quiet:
            print("\r\033[K", end="", file=sys.stderr)
        if not args.json:
            print(report, flush=True)
        yield report


def _say(check: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{check} ...", end="", file=sys.stderr, flush=True)


def _models(args: argparse.Namespace, name: str) -> Iterator[Any]:
    """The model of this name, or the small ones of this family."""
    if not args.family:
        yield _load(name)
        return
    from manticore.evaluation.conformance.small_models import CONFIGURATIONS, small_model

    for configuration in CONFIGURATIONS:
        yield small_model(name, args.seed, configuration)


def _load(name: str) -> Any:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    from manticore.cli.model_folder import model_type
    from manticore.evaluation.conformance.causal import check_causal
    from manticore.models.loading import find_file
    from manticore.models.weight_files import first_line

    find_file(name, "config.json", {})  # raises for a name of nothing
    if Path(name).is_dir():
        model_type(Path(name))  # raises for a folder without a model
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"The config.json of {name} names no model that transformers knows: "
            f"{first_line(error)}. Give the folder or the name of a causal language model."
        ) from error
    check_causal(config, name)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{name} does not load as a causal language model: {first_line(error)}. Give a folder "
            "or a name with safetensors weights and without remote code, or --family."
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing)} weights that its config.json asks for (first: "
            f"{missing[0]}), so random ones would be examined. Fetch or save the checkpoint again."
        )
    return model


def _write(args: argparse.Namespace, reports: list[dict[str, Any]]) -> None:
    from manticore.reports.conformance import markdown_table, write_page

    if args.out:
        write_json(args.out, {"verb": "doctor", "seed": args.seed, "reports": reports})
    if args.html:
        write_page(reports, args.html)
    if args.markdown:
        from manticore.runs import write_text

        write_text(args.markdown, markdown_table(reports))
