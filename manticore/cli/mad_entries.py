"""Options that name architectures for MAD, shared by its verbs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manticore.config.errors import did_you_mean

if TYPE_CHECKING:
    from manticore.evaluation.mad.entry import Entry
    from manticore.evaluation.mad.protocol import Protocol


def add_entries(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which architectures take part."""
    parser.add_argument(
        "--layers",
        nargs="+",
        metavar="MIXER",
        help="mixers from the first to the last, as in mh-attention swiglu; with settings as in "
        "mamba:d_state=16,expand=2, or a layer's .yml file of mad-lab",
    )
    parser.add_argument(
        "--preset", nargs="+", default=[], metavar="NAME", help="named architectures, as in Mamba"
    )
    parser.add_argument(
        "--module",
        metavar="PKG:CLASS",
        help="your own token mixer, built as CLASS(d_model); it is called module in --layers",
    )
    parser.add_argument(
        "--hf-config",
        nargs="+",
        default=[],
        metavar="FILE",
        help="config.json of any causal LM of transformers, or of flash-linear-attention",
    )
    parser.add_argument("--name", help="what the architecture of --layers is called")
    parser.add_argument("--d-model", type=int, help="width (default: the protocol's)")


def add_protocol(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how they are measured."""
    parser.add_argument("--profile", default="pocket", help="pocket (default), baseline or full")
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="only these, by name or as CR NR FR M C SC"
    )
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="option=value",
        help="another task option in all settings that have it, as in seq_len=64; the scores then "
        "belong to a protocol of their own",
    )
    parser.add_argument(
        "--rates", nargs="+", type=float, metavar="LR", help="other learning rates; likewise"
    )
    parser.add_argument("--steps", type=int, help="steps of every training; likewise")
    parser.add_argument(
        "--compat",
        choices=("fixed", "mad-lab"),
        default="fixed",
        help="mad-lab: the original's data, selection on test, and accuracy",
    )


def add_execution(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where it runs."""
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 on (default 1)")
    parser.add_argument("--workers", type=int, default=1, help="trainings at once (default 1)")
    parser.add_argument(
        "--executor", choices=("local", "ray"), default="local", help="local pool (default) or Ray"
    )


def entries_of(args: argparse.Namespace, d_model: int) -> list[Entry]:
    """The architectures that the options name, checked.

    Raises:
        ValueError: none is named, or one cannot be built.
    """
    from manticore.cli.mad_foreign import config_entry, read_layers
    from manticore.evaluation.mad.entry import entry_of_layers

    found: list[Entry] = []
    if args.name and not args.layers:
        raise ValueError("--name is for --layers. Leave it out, or give --layers.")
    if args.d_model is not None and not (args.layers or args.preset or args.module):
        raise ValueError("--d-model is for layers; a configuration has its own width.")
    if args.module and not args.layers:
        args.layers = ["module", "swiglu", "module", "swiglu"]
    if args.layers:
        name = args.name or (args.module.rpartition(":")[2] if args.module else None)
        layers = read_layers(args.layers, d_model, args.compat)
        found.append(entry_of_layers(layers, d_model, name=name, module=args.module))
    found += [_preset(name, d_model) for name in args.preset]
    for path in args.hf_config:
        found.append(config_entry(Path(path)))
    if not found:
        raise ValueError(
            "No architecture is named. Give --layers mh-attention swiglu mamba swiglu, --preset "
            "Mamba, --module pkg:Class or --hf-config config.json."
        )
    return _told_apart(found)


def protocol_of_options(args: argparse.Namespace) -> Protocol:
    """The protocol that the options describe."""
    from manticore.evaluation.mad import protocol

    found = protocol(args.profile, args.compat)
    if args.tasks:
        found = found.only(args.tasks)
    return changed_protocol(found, _changes(args), args.rates, args.steps)


def changed_protocol(
    found: Protocol,
    changes: Mapping[str, Any],
    rates: Sequence[float] | None = None,
    steps: int | None = None,
) -> Protocol:
    """A protocol of one's own, named after what differs, so that its scores stand apart."""
    from manticore.evaluation.mad.settings import changed_settings

    said = [f"{key}={value}" for key, value in changes.items()]
    settings = changed_settings(found.settings, changes)
    replaced: dict[str, Any] = {}
    if rates:
        if not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
            raise ValueError(f"--rates {rates}: give positive numbers, and each once.")
        said.append(f"rates={'/'.join(f'{rate:g}' for rate in rates)}")
        replaced["rates"] = tuple(rates)
    if steps is not None:
        if steps < 1:
            raise ValueError(f"--steps {steps}: at least one step is needed.")
        said.append(f"steps={steps}")
        replaced |= {"steps": steps, "epochs": None}
        settings = tuple(dataclasses.replace(setting, steps=None) for setting in settings)
    if not said:
        return found
    name = f"{found.name}, {', '.join(said)}"
    return dataclasses.replace(found, name=name, settings=settings, **replaced)


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    return dict(_parse_setting(word) for word in args.changes)


def seeds_of(args: argparse.Namespace) -> list[int]:
    """Seeds 0 and up."""
    if args.seeds < 1:
        raise ValueError(f"--seeds {args.seeds}: at least one seed is needed.")
    return list(range(args.seeds))


def _parse_setting(word: str) -> tuple[str, Any]:
    key, separator, text = word.partition("=")
    if not separator or not key:
        raise ValueError(f"{word!r} is not of the form key=value.")
    try:
        return key, json.loads(text)
    except json.JSONDecodeError:
        return key, text


def _preset(name: str, d_model: int) -> Entry:
    from manticore.evaluation.mad.entry import entry_of_layers
    from manticore.models.architectures import PRESETS, find_preset

    if find_preset(name) is None:
        hint = did_you_mean(name, PRESETS)
        raise ValueError(f"Unknown preset {name!r}.{hint} Known: {', '.join(PRESETS)}.")
    return entry_of_layers([name], d_model)


def _told_apart(entries: Sequence[Entry]) -> list[Entry]:
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError(f"Two architectures have one name: {', '.join(names)}. Name each once.")
    return list(entries)
