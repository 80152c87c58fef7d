"""The repeating stack of a model: its layers, and the modules in them that can take an adapter.

```
block      layers.3                       what the model repeats
layer      layers.3.mixer                 a token mixer or a channel mixer: what a block is made of
module     layers.3.mixer.in_proj         a matrix product: where an adapter can sit
```
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

_BLOCK = "GradientCheckpointingLayer"
"""The class from which the blocks of transformers and of manticore descend, by name."""


@dataclass(frozen=True)
class Projection:
    """A matrix product in a layer, adapted or not."""

    name: str
    """Full name in the model."""
    module: nn.Module
    """The linear module, or the tuner's layer around it."""
    parent: nn.Module
    """The module whose code uses it."""
    attribute: str
    """What the parent calls it: the last part of the name."""

    @property
    def base(self) -> nn.Module:
        """The linear module itself."""
        module = self.module
        while isinstance(module, BaseTunerLayer):
            module = module.base_layer
        return module

    @property
    def is_adapted(self) -> bool:
        """Whether a tuner has put its layer here."""
        return isinstance(self.module, BaseTunerLayer)


@dataclass(frozen=True)
class Layer:
    """A token mixer, a channel mixer or whatever else a block is made of."""

    name: str
    """Full name in the model."""
    module: nn.Module
    """The layer."""
    projections: list[Projection] = field(default_factory=list)
    """Its matrix products that can take an adapter."""
    others: list[str] = field(default_factory=list)
    """What else holds matrices, in words: an adapter cannot sit there."""

    @property
    def is_adapted(self) -> bool:
        """Whether a tuner has put a layer anywhere in it."""
        return any(projection.is_adapted for projection in self.projections)

    @property
    def kind(self) -> str:
        """The class of the layer, which names its sort in tables."""
        module = self.module
        while isinstance(module, BaseTunerLayer):
            module = module.base_layer
        # Paths that manticore binds to an instance keep the family's name.
        for cls in type(module).__mro__:
            if not cls.__module__.startswith("manticore.models.fast_"):
                return cls.__name__
        return type(module).__name__


def layers_of(model: nn.Module) -> list[Layer]:
    """Return the layers of the repeating stack, in order, of a plain or an adapted model."""
    found = []
    for name, block in _blocks(model):
        for child_name, child in block.named_children():
            layer = _layer(f"{name}.{child_name}", child, block, child_name)
            if layer.projections or layer.others:
                found.append(layer)
    return found


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a matrix product: nn.Linear (quantized too) or transformers' Conv1D."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _layer(name: str, child: nn.Module, block: nn.Module, attribute: str) -> Layer:
    layer = Layer(name, child)
    if _is_projection(child):
        layer.projections.append(Projection(name, child, block, attribute))
    else:
        _collect(layer, name, child)
    return layer


def _collect(layer: Layer, name: str, module: nn.Module) -> None:
    for key, parameter in module.named_parameters(recurse=False):
        if parameter.ndim >= 2 and not _is_small(key):
            shape = " x ".join(map(str, parameter.shape))
            layer.others.append(f"{name.rpartition('.')[2]}.{key} ({shape}, {_holder(module)})")
    for attribute, child in module.named_children():
        full = f"{name}.{attribute}"
        if _is_projection(child):
            layer.projections.append(Projection(full, child, module, attribute))
        else:
            _collect(layer, full, child)


def _is_projection(module: nn.Module) -> bool:
    # LoRA also wraps modules that hold stacked experts as parameters.
    return isinstance(module, BaseTunerLayer) or is_linear(module)


def _is_small(key: str) -> bool:
    """Decay rates and the like: matrices by shape, not matrix products."""
    return key in ("A_log", "bonus", "blend")


def _holder(module: nn.Module) -> str:
    return type(module).__name__


def _blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The outermost blocks; of a model whose blocks have no common class, its outermost lists."""
    blocks = list(_outermost(model, "", _is_block))
    if blocks:
        return blocks
    lists = _outermost(model, "", lambda m: isinstance(m, nn.ModuleList) and len(m) > 0)
    found = [(f"{name}.{key}", child) for name, m in lists for key, child in m.named_children()]
    return [(name, block) for name, block in found if list(block.children())]


def _is_block(module: nn.Module) -> bool:
    return any(cls.__name__ == _BLOCK for cls in type(module).__mro__)


def _outermost(module: nn.Module, name: str, wanted: object) -> Iterator[tuple[str, nn.Module]]:
    if wanted(module):  # type: ignore[operator]
        yield name, module
        return
    for key, child in module.named_children():
        if not isinstance(child, AuxiliaryTrainingWrapper):
            yield from _outermost(child, f"{name}.{key}" if name else key, wanted)
