"""YAML as people read it: duplicate keys fail, tags fail, `1e-3` is a number, `no` is a word.

PyYAML follows YAML 1.1, where `1e-3` is a string, `no` is false, `1:30` is ninety and a date is
an object. The loader and the dumper here share the scalars of YAML 1.2's core schema instead,
so that what is dumped loads again as the same thing.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from manticore.config.errors import ConfigError

_SCALARS = [
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
]


class _StrictLoader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list] = {}  # noqa: RUF012  (read by PyYAML)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(f"line {line}: the key {key!r} is not a word. Put it in quotes.")
            if key in seen:
                raise ConfigError(
                    f"line {line}: the key '{key}' is already on line {seen[key]}. Remove one."
                )
            seen[key] = line
        return super().construct_mapping(node, deep=deep)


class _StrictDumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, list] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    # Decimal, also with leading zeros: YAML 1.1 would read 010 as eight.
    return int(loader.construct_scalar(node).replace("_", ""))


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
for _tag, _pattern, _first in _SCALARS:
    for _class in (_StrictLoader, _StrictDumper):
        _class.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})\\Z"), list(_first))


def parse_yaml(text: str, source: str) -> Any:
    """Return the plain value of a YAML text.

    Args:
        text: the YAML.
        source: what to call the text in an error, for example its file name.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)  # a SafeLoader: no tag builds an object
    except ConfigError as error:
        raise ConfigError(f"{source}, {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {_explain(error)}") from None


def format_yaml(value: Any) -> str:
    """Return YAML that `parse_yaml` reads back as the same plain value."""
    return yaml.dump(value, Dumper=_StrictDumper, sort_keys=False, allow_unicode=True, width=100)


def _explain(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    if "could not determine a constructor" in str(error.problem):
        tag = str(error.problem).rpartition(" ")[2]
        return f"line {error.problem_mark.line + 1}: the tag {tag} is not allowed in a recipe."
    return f"line {error.problem_mark.line + 1}: {error.problem}."
