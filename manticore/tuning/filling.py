"""Templates such as '{question}\\n', filled with the fields of a row."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any


def fill(template: str, row: Mapping[str, Any], place: str) -> str:
    """A template such as '{question}\\n' with the row's values; numbers are written out."""
    values = {key: value_of(row, key, place) for key in fields_of(template)}
    return template.format_map(values)


def fields_of(template: str) -> list[str]:
    """The fields that a template names."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(
            f"The template {template!r} has a brace that never closes: {error}. Write {{{{ for a "
            "brace."
        ) from error
    # A row is data, not an object to look into: "{question.__class__}" is refused.
    if not all(name.replace("-", "_").isidentifier() for name in names):
        raise ValueError(f"The template {template!r} may name plain fields only, as in {{text}}.")
    return names


def value_of(row: Mapping[str, Any], key: str, place: str) -> str:
    """A field of a row as text; `place` says which row, for the message where it is none."""
    if key not in row:
        raise ValueError(
            f"{place} has no field {key!r}. It has: {', '.join(map(str, row)) or 'none'}."
        )
    value = row[key]
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise ValueError(f"The field {key!r} of {place} is {type(value).__name__}, not text.")
    return str(value)
