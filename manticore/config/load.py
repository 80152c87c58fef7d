"""Load a recipe strictly: the dataclass's defaults, then the YAML file, then the overrides.

A recipe is a frozen dataclass whose fields are numbers, words, paths, lists, dictionaries and
further dataclasses. A key that no field has, a value of another type and a missing required
value fail before anything runs, and the message says what was given and what is allowed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from manticore.config.errors import ConfigError, did_you_mean
from manticore.config.locate import read_recipe_file
from manticore.config.overrides import Override, apply_override, parse_override
from manticore.config.types import (
    admits,
    check_recipe_class,
    dataclass_in,
    default_of,
    describe_type,
    field_types,
    key_paths,
    scalar,
    unwrap_optional,
)

__all__ = ["ConfigError", "from_plain", "load_recipe"]

Recipe = TypeVar("Recipe")


def load_recipe(
    cls: type[Recipe], path: str | Path | None = None, overrides: Iterable[str] = ()
) -> Recipe:
    """Return the recipe of class `cls` that a YAML file and overrides describe.

    Args:
        cls: a frozen, keyword-only dataclass.
        path: the YAML file; None starts from the defaults alone.
        overrides: texts like "finetune.lr=1e-3" or "components.0.path=pythia"; later ones win.

    Raises:
        ConfigError: anything in the file or the overrides that `cls` does not allow.
    """
    plain = {} if path is None else read_recipe_file(path)
    _check_kind(cls, plain, path)
    return from_plain(cls, plain, source=str(path or "the defaults"), overrides=overrides)


def _check_kind(cls: type, plain: dict, path: str | Path | None) -> None:
    """A recipe for another verb is told so, rather than that its keys are unknown."""
    # Here, because the recipes' classes are made with this module.
    from manticore.config.kinds import RECIPE_KINDS

    kind = plain.get("kind")
    known = RECIPE_KINDS.get(kind) if isinstance(kind, str) else None
    if known and known.recipe is not cls and cls in [k.recipe for k in RECIPE_KINDS.values()]:
        raise ConfigError(
            f"'{path}' is a recipe of kind '{kind}', which is for `manticore {known.verb}`. "
            "`manticore recipe` lists the recipes of every kind."
        )


def from_plain(
    cls: type[Recipe], plain: dict, *, source: str, overrides: Iterable[str] = ()
) -> Recipe:
    """Return the recipe of class `cls` that a plain dictionary describes.

    Args:
        cls: a frozen, keyword-only dataclass.
        plain: what a YAML file would hold.
        source: what to call `plain` in an error.
        overrides: as in `load_recipe`.
    """
    check_recipe_class(cls)
    given = {}
    for text in overrides:
        key, override = parse_override(text)
        plain = apply_override(plain, cls, key, override)
        given[key] = override
    return _Builder(cls, source, given).build(cls, plain, "", dataclasses.MISSING)


class _Builder:
    """Turns plain values into a recipe and knows where each value came from."""

    def __init__(self, root: type, source: str, given: dict[str, Override]) -> None:
        self.source = source
        self.given = given
        self.known = key_paths(root)

    def build(self, cls: type, plain: dict, where: str, default: Any) -> Any:
        """Return an instance of `cls`; fields that `plain` lacks come from `default`."""
        types = field_types(cls)
        for key in plain:
            if key not in types:
                self._fail_unknown(_join(where, key), types, where)
        values = {}
        for name, annotation in types.items():
            inner = getattr(default, name, dataclasses.MISSING)
            if inner is dataclasses.MISSING:
                inner = default_of(cls, name)
            if name in plain:
                values[name] = self.value(annotation, plain[name], _join(where, name), inner)
            elif inner is not dataclasses.MISSING:
                values[name] = inner
            else:
                self._fail_missing(_join(where, name), annotation)
        try:
            return cls(**values)
        except ValueError as error:
            at = f"'{where}' of {self.source}" if where else self.source
            raise ConfigError(f"{error} (In {at}.)") from error

    def value(self, annotation: Any, plain: Any, where: str, default: Any) -> Any:
        """Return `plain` as what the annotation asks for."""
        if isinstance(plain, Override):
            plain = plain.value_for(annotation)
        if plain is None and admits(annotation, type(None)):
            return None
        for option in unwrap_optional(annotation):
            origin, parts = option.origin, option.parts
            if isinstance(plain, dict) and option.cls is not None:
                return self.build(option.cls, plain, where, default)
            if isinstance(plain, dict) and origin is dict:
                return {
                    key: self.value(parts[1], item, _join(where, key), dataclasses.MISSING)
                    for key, item in plain.items()
                }
            if isinstance(plain, list | tuple) and origin in (list, tuple):
                types = option.item_types(len(plain))
                if types is not None:
                    items = enumerate(zip(types, plain, strict=True))
                    missing = dataclasses.MISSING
                    return origin(
                        self.value(t, item, f"{where}.{i}", missing) for i, (t, item) in items
                    )
        found, value = scalar(annotation, plain)
        if not found:
            self._fail_type(where, annotation, plain)
        return value

    def _fail_unknown(self, where: str, types: dict[str, Any], parent: str) -> None:
        allowed = ", ".join(_join(parent, name) for name in types)
        siblings = [_join(parent, name) for name in types]
        hint = did_you_mean(where, siblings + self.known)
        raise ConfigError(f"Unknown key '{where}' in {self._at(where)}.{hint} Allowed: {allowed}.")

    def _fail_missing(self, where: str, annotation: Any) -> None:
        raise ConfigError(
            f"'{where}' is missing in {self.source} and has no default. "
            f"Set it to {describe_type(annotation)}."
        )

    def _fail_type(self, where: str, annotation: Any, plain: Any) -> None:
        inner = dataclass_in(annotation)
        keys = f" Its keys: {', '.join(field_types(inner))}." if inner else ""
        hint = did_you_mean(plain, _words(annotation)) if isinstance(plain, str) else ""
        raise ConfigError(
            f"'{where}' in {self._at(where)} is {plain!r:.80}, "
            f"but must be {describe_type(annotation)}.{hint}{keys}"
        )

    def _at(self, where: str) -> str:
        """Name the override that set this key, else the file."""
        for key, override in reversed(self.given.items()):
            if where == key or where.startswith(f"{key}.") or key.startswith(f"{where}."):
                return f"the override '{key}={override.text}'"
        return self.source


def _words(annotation: Any) -> list[str]:
    """The words that a Literal allows."""
    return [w for o in unwrap_optional(annotation) for w in o.literals if isinstance(w, str)]


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
