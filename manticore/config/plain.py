"""From a recipe back to plain values and YAML: `load_recipe(cls, dump_yaml(recipe)) == recipe`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from manticore.config.strict_yaml import format_yaml


def to_plain(value: Any) -> Any:
    """Return dataclasses as dictionaries, tuples as lists and paths as strings, all the way down.

    Fields that are computed (`init=False`) are left out: a recipe cannot set them.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field for field in dataclasses.fields(value) if field.init)
        return {field.name: to_plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def dump_yaml(recipe: Any) -> str:
    """Return the recipe as YAML, every field written out."""
    return format_yaml(to_plain(recipe))
