"""Options that several verbs share, so that they are spelt and explained the same everywhere."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path


def add_recipe(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the recipe's path and overrides, both as `key.sub=value` and as `--set key.sub=value`."""
    parser.add_argument(
        "recipe",
        nargs=None if required else "?",
        help="YAML file; `manticore recipe` lists the shipped ones",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key.sub=value",
        help="replaces a value of the recipe, as in finetune.lr=1e-3",
    )
    parser.add_argument(
        "--set",
        dest="overrides_set",
        action="append",
        default=[],
        metavar="key.sub=value",
        help="the same, written as an option",
    )


def overrides_of(args: argparse.Namespace) -> tuple[str, ...]:
    """Return all overrides; those by `--set` come last and win."""
    return (*args.overrides, *args.overrides_set)


def add_out(
    parser: argparse.ArgumentParser, default: str | None = None, what: str = "folder of the run"
) -> None:
    """Add `--out`, a path."""
    shown = f" (default: {default})" if default else ""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(default) if default else None,
        required=False,
        help=what + shown,
    )


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Add `--dry-run`: print what would happen, compute and write nothing."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print configuration, parameters, FLOPs and files to be written, then stop",
    )


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add `--quiet`: no progress bars."""
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def add_trainings(parser: argparse.ArgumentParser) -> None:
    """Add `--seeds` and `--processes`, of verbs that train every row of a recipe."""
    parser.add_argument("--seeds", metavar="0,1,2", help="one training for each (the recipe's)")
    parser.add_argument("--processes", type=positive, default=1, help="trainings at a time (1)")


def positive(text: str) -> int:
    """A whole number from 1 on, as the type of an option."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number of at least 1.")
    return value


def parse_seeds(text: str | None) -> list[int] | None:
    """Seeds from `--seeds 0,1,2`; None where the option was not given."""
    if text is None:
        return None
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--seeds {text}: give whole numbers like 0,1,2.") from None
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {text} names a seed twice. Give each once.")
    return seeds


def command_of(verb: str, args: argparse.Namespace) -> str:
    """The command that makes the same run, of a verb with `add_trainings`."""
    words = ["manticore", *verb.split(), str(args.recipe), *overrides_of(args)]
    words += ["--seeds", args.seeds] if args.seeds else []
    words += ["--out", os.fspath(args.out)] if args.out else []
    return shlex.join(words)
