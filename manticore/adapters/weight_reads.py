"""Where a layer reads a projection's weight past the module, so that an adapter has no say.

An adapter changes what `self.out_proj(x)` returns. Code that hands `self.out_proj.weight` to a
kernel never asks. Such reads are found in the source of the layer's class, on any machine, also
for kernels that are not installed.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from functools import cache

from torch import nn

# Questions about a weight that do not read it.
_HARMLESS = frozenset({"dtype", "device", "shape", "ndim", "size", "numel", "is_meta"})
_NOT_FORWARD = ("__init__", "_init", "init_", "reset_", "extra_repr")


@dataclass(frozen=True)
class WeightRead:
    """Code that uses a projection's weight without calling the projection."""

    where: str
    """Class and method."""
    only_in_training: bool
    """True if it stands behind `if self.training`, where transformers calls fused kernels."""

    def sentence(self) -> str:
        """Why an adapter there has no effect."""
        when = " for fused kernels, in training, where installed" if self.only_in_training else ""
        return f"{self.where} reads its weight past the module{when}"


def weight_reads(parent: nn.Module) -> dict[str, WeightRead]:
    """Return, for each attribute of `parent` whose weight is read past it, where that happens."""
    return _reads_of(type(parent))  # type: ignore[arg-type]


@cache
def _reads_of(cls: type) -> dict[str, WeightRead]:
    found: dict[str, WeightRead] = {}
    for base in cls.__mro__:
        if base in (nn.Module, object):
            continue
        for name, method in vars(base).items():
            if inspect.isfunction(method) and not name.startswith(_NOT_FORWARD):
                for attribute, guarded in _reads_in(method):
                    known = found.get(attribute)
                    if known is None or (known.only_in_training and not guarded):
                        found[attribute] = WeightRead(f"{base.__name__}.{name}", guarded)
    return found


def _reads_in(method: object) -> list[tuple[str, bool]]:
    try:
        source = inspect.getsource(inspect.unwrap(method))  # type: ignore[arg-type]
        tree = ast.parse(textwrap.dedent(source))
    except (OSError, TypeError, SyntaxError):  # made at run time: there is no source to read
        return []
    visitor = _Visitor()
    visitor.visit(tree)
    return visitor.found


class _Visitor(ast.NodeVisitor):
    def __init__(self) -> None:
        self.found: list[tuple[str, bool]] = []
        self._guards = 0

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        is_guard = any(
            isinstance(part, ast.Attribute) and part.attr == "training"
            for part in ast.walk(node.test)
        )
        self._guards += is_guard
        for child in node.body:
            self.visit(child)
        self._guards -= is_guard
        for child in node.orelse:
            self.visit(child)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in _HARMLESS and isinstance(node.value, ast.Attribute):
            return
        owner = node.value
        if (
            node.attr == "weight"
            and isinstance(owner, ast.Attribute)
            and isinstance(owner.value, ast.Name)
            and owner.value.id == "self"
        ):
            self.found.append((owner.attr, self._guards > 0))
            return
        self.generic_visit(node)
