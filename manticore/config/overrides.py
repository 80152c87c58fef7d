"""Overrides from the command line: `finetune.lr=1e-3`, `components.0.path=pythia`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manticore.config.errors import ConfigError
from manticore.config.plain import to_plain
from manticore.config.strict_yaml import parse_yaml
from manticore.config.types import (
    admits,
    dataclass_in,
    default_of,
    field_types,
    scalar,
    unwrap_optional,
)


@dataclasses.dataclass(frozen=True)
class Override:
    """The right side of an override. What it means depends on the field that it sets."""

    text: str

    def value_for(self, annotation: Any) -> Any:
        """Return the plain value: YAML, but a text field takes any word as it stands.

        A list may be written without brackets: `seeds=0,1,2`.
        """
        source = f"the override value '{self.text}'"
        kinds = {option.annotation for option in unwrap_optional(annotation)}
        if kinds <= {str, Path, type(None)} and self.text[:1] not in ("'", '"'):
            is_null = self.text in ("null", "~") and type(None) in kinds
            return None if is_null else self.text
        value = parse_yaml(self.text, source)
        if value is None or isinstance(value, dict | list) or scalar(annotation, value)[0]:
            return value
        if admits(annotation, list) or admits(annotation, tuple):
            return parse_yaml(f"[{self.text}]", source)
        # A word that looks like a number, for a field that takes words: `tag=123`.
        return self.text if scalar(annotation, self.text)[0] else value


def parse_override(text: str) -> tuple[str, Override]:
    """Return (dotted key, value) of a text like "finetune.lr=1e-3"."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key or "" in key.split("."):
        raise ConfigError(f"'{text}' is not an override. Write key=value, as in finetune.lr=1e-3.")
    return key, Override(value.strip())


def apply_override(plain: dict, cls: type, key: str, override: Override) -> dict:
    """Return a copy of `plain` in which the dotted key has the override's value.

    Args:
        plain: a recipe's plain content.
        cls: the recipe's class: a list that `plain` does not mention is taken from its default.
        key: names and list positions, as in "components.0.path".
        override: the value.
    """
    result: dict = _set(plain, key.split("."), override, cls, key)
    return result


def _set(node: Any, names: Sequence[str], override: Override, cls: Any, key: str) -> Any:
    if not names:
        return override
    name, rest = names[0], names[1:]
    if isinstance(node, Override):
        node = parse_yaml(node.text, f"the override value '{node.text}'")
    if node is None:
        node = {}
    if isinstance(node, Mapping):
        annotation = field_types(cls).get(name) if cls else None
        inner = node.get(name, _default_list(cls, name) if rest else None)
        return {**node, name: _set(inner, rest, override, _inner_class(annotation), key)}
    if isinstance(node, list):
        index = _position(name, len(node), key)
        return [
            _set(item, rest, override, cls, key) if i == index else item
            for i, item in enumerate(node)
        ]
    raise ConfigError(f"The override '{key}' reaches into {node!r:.60}, which has no '{name}'.")


def _inner_class(annotation: Any) -> type | None:
    """The dataclass in an annotation, also in `list[...]`."""
    if annotation is None:
        return None
    parts = [annotation, *getattr(annotation, "__args__", ())]
    return next((inner for part in parts if (inner := dataclass_in(part))), None)


def _default_list(cls: type | None, name: str) -> Any:
    if cls is None or name not in field_types(cls):
        return None
    default = default_of(cls, name)
    return to_plain(default) if isinstance(default, list | tuple) else None


def _position(name: str, length: int, key: str) -> int:
    if name.isdecimal() and int(name) < length:
        return int(name)
    raise ConfigError(
        f"The override '{key}' has '{name}' where a position in a list of {length} must stand "
        f"(0 to {length - 1})."
    )
