"""Options that several verbs share, so that they are spelt and explained the same everywhere."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_recipe(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the recipe's path and overrides, both as `key.sub=value` and as `--set key.sub=value`."""
    parser.add_argument(
        "recipe",
        nargs=None if required else "?",
        help="YAML file; recipes/... names one that is shipped",
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
