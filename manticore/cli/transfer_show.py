"""Show the plan of a transfer: what becomes of every tensor, without any training.

Each tensor of the target is copied, mapped, repeated, tied or initialised, and each tensor of the
source that is not used is named with the reason.

Example:
    manticore transfer show recipes/zoo/neox-prose --mixer retention
    manticore transfer show recipes/zoo/stories260k --mixer gated-deltanet --copy all --keep 0,2
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from manticore.config import recipes_root


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore transfer show`."""
    parser.add_argument("source", help="folder or hub name of a pretrained transformer")
    parser.add_argument("--mixer", default="retention", help="mixer of every layer (retention)")
    parser.add_argument(
        "--copy",
        default="paper",
        choices=("scratch", "no-output", "paper", "all"),
        help="what is inherited (paper: all but queries, keys and values)",
    )
    parser.add_argument("--keep", default="", metavar="0,2", help="layers that stay attention")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    from manticore.cli.quiet import quiet_transformers
    from manticore.conversion.transfer import transfer

    quiet_transformers()
    source = shipped_model(args.source)
    _, plan = transfer(source, args.mixer, copy=args.copy, keep=_layers(args.keep))
    print(json.dumps(plan.to_dict(), indent=2) if args.json else plan)
    return 0


def shipped_model(name: str) -> str:
    """The folder behind `recipes/zoo/...` where the working folder has none; else the name."""
    path = Path(name)
    if path.parts[:1] == ("recipes",) and not path.is_dir():
        shipped = recipes_root().joinpath(*path.parts[1:])
        return str(shipped) if shipped.is_dir() else name
    return name


def _layers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise ValueError(f"--keep {text} is not a list of layers, as in 0,2.") from None
