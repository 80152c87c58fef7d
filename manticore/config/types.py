"""The types that a recipe's fields may have, and how a plain value becomes one of them."""

from __future__ import annotations

import dataclasses
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union

SCALARS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    type(None): "null",
}


@dataclasses.dataclass(frozen=True)
class Option:
    """One member of a union, or the only type."""

    annotation: Any

    @property
    def origin(self) -> Any:
        """`list` of `list[int]`; None for a plain class."""
        return typing.get_origin(self.annotation)

    @property
    def parts(self) -> tuple[Any, ...]:
        """`(int,)` of `list[int]`."""
        return typing.get_args(self.annotation)

    @property
    def cls(self) -> type | None:
        """The dataclass, if it is one."""
        is_one = isinstance(self.annotation, type) and dataclasses.is_dataclass(self.annotation)
        return self.annotation if is_one else None

    @property
    def literals(self) -> tuple[Any, ...]:
        """The values that a Literal allows."""
        return self.parts if self.origin is Literal else ()

    def item_types(self, length: int) -> list[Any] | None:
        """Types of the items of a list or tuple of that length; None if the length is wrong."""
        if self.origin is list or self.parts[1:] == (...,):
            return [self.parts[0]] * length
        return list(self.parts) if len(self.parts) == length else None


def unwrap_optional(annotation: Any) -> list[Option]:
    """Return the members of a union, or the single type."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [o for part in typing.get_args(annotation) for o in unwrap_optional(part)]
    return [Option(type(None) if annotation is None else annotation)]


def admits(annotation: Any, kind: Any) -> bool:
    """Return whether `kind` is a member of the annotation."""
    return any(kind in (option.annotation, option.origin) for option in unwrap_optional(annotation))


def dataclass_in(annotation: Any) -> type | None:
    """Return the dataclass among the members of the annotation, if there is one."""
    return next((o.cls for o in unwrap_optional(annotation) if o.cls), None)


@cache
def field_types(cls: type) -> dict[str, Any]:
    """Return the settable fields of a dataclass and their types, in order."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def default_of(cls: type, name: str) -> Any:
    """Return a field's default, or `dataclasses.MISSING`."""
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def scalar(annotation: Any, plain: Any) -> tuple[bool, Any]:
    """Return (True, value) if a member of the annotation takes the plain value, else (False, None).

    Exact types come first, so that `int | float` keeps 3 an int. After that a whole float is an
    int (`1e6` steps), an int is a float, and so is a word like `inf`. Booleans are never numbers.
    """
    options = unwrap_optional(annotation)
    for option in options:
        exact = any(plain == value and type(plain) is type(value) for value in option.literals)
        if exact or type(plain) is option.annotation:
            return True, plain
    if isinstance(plain, bool):
        return False, None
    for option in options:
        found, value = _convert(option.annotation, plain)
        if found:
            return True, value
    return False, None


def _convert(wanted: Any, plain: Any) -> tuple[bool, Any]:
    if wanted is int and isinstance(plain, float) and plain.is_integer():
        return True, int(plain)
    if wanted is float and isinstance(plain, int):
        return True, float(plain)
    if wanted is float and isinstance(plain, str) and plain.lstrip("+-").lower() in ("inf", "nan"):
        return True, float(plain)
    if wanted is Path and isinstance(plain, str):
        return True, Path(plain)
    return False, None


def describe_type(annotation: Any) -> str:
    """Return the type in words: "a whole number or null", "one of streams, shared"."""
    return " or ".join(dict.fromkeys(_describe(option) for option in unwrap_optional(annotation)))


def _describe(option: Option) -> str:
    if option.literals:
        return "one of " + ", ".join(f"'{value}'" for value in option.literals)
    if option.cls is not None:
        return f"a group of keys ({option.cls.__name__})"
    if option.origin is list or option.parts[1:] == (...,):
        return f"a list, each item {describe_type(option.parts[0])}"
    if option.origin is tuple:
        items = "; ".join(describe_type(part) for part in option.parts)
        return f"a list of {len(option.parts)} ({items})"
    if option.origin is dict:
        return f"names, each with {describe_type(option.parts[1])}"
    return SCALARS[option.annotation]


def key_paths(cls: type, prefix: str = "") -> list[str]:
    """Return every dotted key of a recipe class; items of lists count as number 0."""
    paths = []
    for name, annotation in field_types(cls).items():
        paths.append(prefix + name)
        for option in unwrap_optional(annotation):
            inner, step = option.cls, f"{prefix}{name}."
            if option.origin in (list, tuple):
                inner, step = dataclass_in(option.parts[0]), f"{prefix}{name}.0."
            if inner is not None and inner is not cls:
                paths += key_paths(inner, step)
    return paths


def check_recipe_class(cls: type) -> None:
    """Raise TypeError if `cls` is not a frozen dataclass of plain values.

    Classes and callables as values are refused: a recipe names things, it never imports them.
    """
    parameters = getattr(cls, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise TypeError(f"{cls.__name__} must be a frozen dataclass to be a recipe.")
    for name, annotation in field_types(cls).items():
        _check_annotation(annotation, f"{cls.__name__}.{name}")


def _check_annotation(annotation: Any, where: str) -> None:
    options = unwrap_optional(annotation)
    for option in options:
        if option.cls is not None:
            check_recipe_class(option.cls)
        elif option.origin is dict and option.parts[0] is str:
            _check_annotation(option.parts[1], where)
        elif option.origin in (list, tuple):
            for part in option.parts:
                if part is not ...:
                    _check_annotation(part, where)
        elif option.origin is not Literal and option.annotation not in SCALARS:
            raise TypeError(f"{where}: a recipe cannot hold {annotation}.")
    if sum(option.cls is not None for option in options) > 1:
        raise TypeError(f"{where}: two dataclasses in one union cannot be told apart.")
