"""List the recipes that are shipped, or every key that a recipe may have.

With a kind of recipe, or a recipe's file, its keys: what may be given, the default, and what it
does. More words leave the keys that contain one of them.

Example:
    manticore recipe transfer align freeze
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

from manticore.config import ConfigError, FieldHelp, describe_fields, recipe_kind, recipes_root
from manticore.config.errors import did_you_mean
from manticore.config.kinds import RECIPE_KINDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore recipe`."""
    parser.add_argument(
        "kind", nargs="?", help=f"{', '.join(RECIPE_KINDS)}, or the path of a recipe"
    )
    parser.add_argument("words", nargs="*", metavar="key", help="only keys that contain this")
    parser.add_argument(
        "--markdown", action="store_true", help="tables for a page, without a kind of all kinds"
    )


def run(args: argparse.Namespace) -> int:
    """Print what was asked for."""
    if args.kind is None:
        print(reference() if args.markdown else _shipped())
        return 0
    kind = _kind_of(args.kind)
    keys = describe_fields(RECIPE_KINDS[kind].recipe)
    wanted = [key for key in keys if not args.words or any(w in key.name for w in args.words)]
    if not wanted:
        raise ConfigError(
            f"No key of a recipe of kind '{kind}' contains {' or '.join(map(repr, args.words))}."
            f"{did_you_mean(args.words[0], [key.name for key in keys])}"
            f" `manticore recipe {kind}` lists them all."
        )
    print(_table(wanted) if args.markdown else "\n".join(_in_lines(wanted)))
    return 0


def reference() -> str:
    """The keys of all kinds, as a page in Markdown."""
    lines = [
        "# Keys of recipes",
        "",
        "A recipe is a YAML file; `[]` stands for each item of a list. Any key can be replaced on",
        "the command line, as in `train.lr=1e-3` or `rows.0.align=20`. Unknown keys and wrong",
        "types are refused before anything is read. `manticore recipe KIND WORD` shows the same in",
        "a terminal; this page is the output of `manticore recipe --markdown`.",
    ]
    for name, kind in RECIPE_KINDS.items():
        lines += [
            "",
            f"## `kind: {name}`",
            "",
            f"{kind.about[0].upper()}{kind.about[1:]}: `manticore {kind.verb} RECIPE`.",
            "",
            _table(describe_fields(kind.recipe)),
        ]
    return "\n".join(lines)


def _kind_of(given: str) -> str:
    if given in RECIPE_KINDS:
        return given
    if Path(given).suffix in (".yaml", ".yml"):
        return recipe_kind(given, tuple(RECIPE_KINDS))
    raise ConfigError(
        f"'{given}' is no kind of recipe.{did_you_mean(given, RECIPE_KINDS)} Known: "
        f"{', '.join(RECIPE_KINDS)}; or give a recipe's path, ending in .yaml."
    )


def _shipped() -> str:
    """Every recipe that is shipped, by kind, with the first sentence of its comment."""
    root, by_kind = recipes_root(), dict[str, list[str]]()
    for path in sorted(root.rglob("*.yaml")):
        lines = by_kind.setdefault(recipe_kind(path, tuple(RECIPE_KINDS)), [])
        lines.append(f"  recipes/{path.relative_to(root).as_posix()}")
        lines += _wrapped(_first_sentence(path.read_text(encoding="utf-8")), "      ")
    shown = []
    for name, kind in RECIPE_KINDS.items():
        shown += [f"{name}: {kind.about} (manticore {kind.verb})", *by_kind.get(name, []), ""]
    return "\n".join([*shown, "manticore recipe KIND   lists the keys of a kind"])


def _first_sentence(text: str) -> str:
    comment = re.match(r"(?:#.*\n)*", text)
    words = " ".join(line.lstrip("# ") for line in comment.group().splitlines()) if comment else ""
    return textwrap.shorten(re.split(r"(?<=[.?]) ", words, maxsplit=1)[0], 170, placeholder=" ...")


def _in_lines(keys: Iterable[FieldHelp]) -> Iterable[str]:
    for key in keys:
        default = "" if key.default == "" else f", default {key.default}"
        if key.default in ("required", "as below"):
            default = f", {key.default}"
        yield f"{key.name}  ({key.type}{default})"
        yield from _wrapped(key.help, "    ")


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 88, initial_indent=indent, subsequent_indent=indent)


def _table(keys: Iterable[FieldHelp]) -> str:
    rows = ["| key | what may be given | default | what it does |", "|---|---|---|---|"]
    for key in keys:
        default = f"`{key.default}`" if key.default else ""
        if key.default in ("required", "as below"):
            default = key.default
        cells = (f"`{key.name}`", key.type, default, " ".join(key.help.split()))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)
