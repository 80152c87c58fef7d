"""Show what an architecture of mixers costs, and whether two may be compared.

LAYERS are the layers in order, or the name of a preset (Transformer, Mamba, StripedHyena, ...). A
layer is a mixer's name, with settings where the defaults do not fit: mh-attention:n_heads=4. Two
architectures are separated by a "/".

Example:
    manticore mad show mh-attention swiglu mamba swiglu
    manticore mad show hyena swiglu hyena swiglu / mamba mamba mamba mamba
    manticore mad show StripedHyena --against Transformer --seq-len 1024 --json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manticore.models.architectures import ArchitectureCosts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore mad show`."""
    parser.add_argument(
        "layers", nargs="*", metavar="LAYERS", help="mixers in order, or a preset; default: presets"
    )
    parser.add_argument("--against", metavar="PRESET", help="a preset to compare with")
    parser.add_argument("--d-model", type=int, default=128, help="width (128)")
    parser.add_argument("--seq-len", type=int, default=128, help="length of a sequence (128)")
    parser.add_argument("--vocab-size", type=int, default=16, help="rows of the tables (16)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print; nothing is written."""
    from manticore.models.architectures import (
        PRESETS,
        architecture_costs,
        comparability,
        find_preset,
    )

    if not args.layers:
        print("\n".join(f"{name:24}{' '.join(layers)}" for name, layers in PRESETS.items()))
        return 0
    given = split_architectures(args.layers)
    if args.against is not None:
        if find_preset(args.against) is None:
            raise ValueError(
                f"--against {args.against!r} is no preset. Known: {', '.join(PRESETS)}. To compare "
                'with other layers, separate the two by a "/".'
            )
        given.append([args.against])
    size = {"d_model": args.d_model, "seq_len": args.seq_len, "vocab_size": args.vocab_size}
    check_size(size)
    costs = [architecture_costs(words, **size) for words in given]
    reasons = [comparability(costs[0], other) for other in costs[1:]]
    if args.json:
        print(json.dumps(as_json(costs, reasons), indent=2))
    else:
        print("\n\n".join(["\n".join(table(cost)) for cost in costs] + verdicts(reasons)))
    return 0


def split_architectures(words: list[str]) -> list[list[str]]:
    """The words between the slashes."""
    groups: list[list[str]] = [[]]
    for word in words:
        if word == "/":
            groups.append([])
        else:
            groups[-1].append(word)
    if not all(groups):
        raise ValueError('A "/" separates two architectures; give layers on both sides of it.')
    return groups


def check_size(size: dict[str, int]) -> None:
    """Sizes are at least 1."""
    for name, value in size.items():
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: give at least 1.")


def table(cost: ArchitectureCosts) -> list[str]:
    """One architecture as lines of text."""
    from manticore.models.architectures import ISO_STATE

    grows = cost.has_growing_state
    off_rule = not grows and cost.fixed_mixing_state not in (0, ISO_STATE)
    notes = {
        "mixing state": "grows with the sequence" if grows else "",
        "fixed part of it": f"the iso-state rule has {ISO_STATE:,}" if off_rule else "",
    }
    rows = {
        "parameters": cost.parameters,
        "state": cost.state,
        "mixing state": cost.mixing_state,
        "fixed part of it": cost.fixed_mixing_state,
        "FLOPs per token": cost.flops_per_token,
    }
    sizes = f"d_model {cost.d_model}, length {cost.seq_len}, vocabulary {cost.vocab_size}"
    lines = [" ".join(cost.layers), f"  {sizes}"]
    for name, value in rows.items():
        note = f"   {notes[name]}" if notes.get(name) else ""
        lines.append(f"  {name:18}{value:>14,}{note}")
    return lines


def verdicts(reasons: list[list[str]]) -> list[str]:
    """Whether the first may be compared with each of the others."""
    blocks = []
    for number, found in enumerate(reasons, start=2):
        which = f"1 and {number}" if len(reasons) > 1 else "the two"
        if found:
            listed = "\n".join(f"  - {reason}" for reason in found)
            blocks.append(f"not comparable ({which}):\n{listed}")
        else:
            blocks.append(f"comparable ({which}): equal size, state and cost within the limits")
    return blocks


def as_json(costs: list[ArchitectureCosts], reasons: list[list[str]]) -> dict[str, Any]:
    """The same as data; reasons compare the first architecture with each other one."""
    return {
        "architectures": [
            {**dataclasses.asdict(cost), "has_growing_state": cost.has_growing_state}
            for cost in costs
        ],
        "not_comparable_because": reasons,
    }
