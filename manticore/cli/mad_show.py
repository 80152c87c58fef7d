"""Show what an architecture of mixers costs, and which two may be compared.

LAYERS are the layers in order, or the name of a preset (Transformer, Mamba, StripedHyena, ...). A
layer is a mixer's name, with settings where the defaults do not fit: mh-attention:n_heads=4. A
"/" separates architectures.

Example:
    manticore mad show mh-attention swiglu mamba swiglu
    manticore mad show hyena swiglu hyena swiglu / mamba mamba mamba mamba
    manticore mad show StripedHyena --against Transformer --seq-len 1024 --json
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
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
    pairs = compare(costs)
    if args.json:
        print(json.dumps(as_json(costs, pairs), indent=2))
    else:
        print("\n\n".join(["\n".join(table(cost)) for cost in costs] + verdicts(costs, pairs)))
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


def compare(costs: list[ArchitectureCosts]) -> list[tuple[int, int, list[str]]]:
    """Every two of them, and why they should not be compared (nothing: they may be)."""
    from manticore.models.architectures import comparability

    pairs = itertools.combinations(range(len(costs)), 2)
    return [(one, other, comparability(costs[one], costs[other])) for one, other in pairs]


def verdicts(costs: list[ArchitectureCosts], pairs: list[tuple[int, int, list[str]]]) -> list[str]:
    """Whether every two of them may be compared."""
    blocks = []
    for one, other, found in pairs:
        which = " and ".join(" ".join(costs[i].layers) for i in (one, other))
        if found:
            listed = "\n".join(f"  - {reason}" for reason in found)
            blocks.append(f"not comparable: {which}\n{listed}")
        else:
            grows = costs[one].has_growing_state or costs[other].has_growing_state
            state = "attention's state is exempt" if grows else "equal mixing state"
            blocks.append(
                f"comparable: {which}\n  equal sizes; parameters and FLOPs within the limits; "
                f"{state}"
            )
    return blocks


def as_json(
    costs: list[ArchitectureCosts], pairs: list[tuple[int, int, list[str]]]
) -> dict[str, Any]:
    """The same as data; a pair is two indices, and comparable if it has no reasons."""
    return {
        "architectures": [
            {**dataclasses.asdict(cost), "has_growing_state": cost.has_growing_state}
            for cost in costs
        ],
        "pairs": [
            {"architectures": [one, other], "not_comparable_because": found}
            for one, other, found in pairs
        ],
    }
