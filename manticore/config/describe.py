"""The fields of a recipe in words, for `--help` and the documentation."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
from functools import cache
from itertools import pairwise
from typing import Any

from manticore.config.plain import to_plain
from manticore.config.types import dataclass_in, default_of, describe_type, field_types
from manticore.config.types import unwrap_optional as members


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldHelp:
    """What a reader must know to set one key."""

    name: str
    """Dotted key; `[]` stands for a position in a list."""
    type: str
    """What may be given, in words."""
    default: str
    """The default as YAML would have it, or "required"."""
    help: str
    """The text beneath the field in its class."""


def describe_fields(cls: type, prefix: str = "") -> list[FieldHelp]:
    """Return one entry for each key of a recipe class, groups opened up, in order."""
    texts = field_texts(cls)
    described = []
    for name, annotation in field_types(cls).items():
        default = default_of(cls, name)
        described.append(
            FieldHelp(
                name=prefix + name,
                type=describe_type(annotation),
                default=_show(default),
                help=texts.get(name, ""),
            )
        )
        for option in members(annotation):
            if option.cls is not None:
                described += describe_fields(option.cls, f"{prefix}{name}.")
            elif option.origin in (list, tuple) and (inner := dataclass_in(option.parts[0])):
                described += describe_fields(inner, f"{prefix}{name}.[].")
    return described


@cache
def field_texts(cls: type) -> dict[str, str]:
    """Return the string beneath each field, from the source of the class and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            texts.update(_texts_in_source(base))
    return texts


def _texts_in_source(cls: type) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError):  # made at run time: there is no source to read
        return {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    texts = {}
    for field, text in pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            texts[field.target.id] = inspect.cleandoc(str(text.value.value))
    return texts


def _show(default: Any) -> str:
    if default is dataclasses.MISSING:
        return "required"
    if dataclasses.is_dataclass(default):
        return "as below"
    # What JSON writes of these values is YAML, too.
    return default if isinstance(default, str) else json.dumps(to_plain(default))
