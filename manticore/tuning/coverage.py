"""Which layers of a model have an adapter that learns, and why the others have none.

On hybrids and state-space models adapters often reach a few layers only and nobody notices: the
names that fit attention miss the mixers, and fused kernels read weights past the adapter. A
coverage report names every layer and, measured by a backward pass, whether its adapter learns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from peft import PeftModel
from torch import nn

from manticore.adapters.stack import Layer, Projection, layers_of
from manticore.adapters.targets import MIN_FEATURES, default_targets, smallest_side
from manticore.adapters.uncovered import warn_uncovered
from manticore.adapters.weight_reads import weight_reads
from manticore.tuning.reach import Reach, measure_reach

__all__ = [
    "LayerCoverage",
    "ModuleCoverage",
    "Report",
    "coverage",
    "default_targets",
    "warn_uncovered",
]

State = Literal["learns", "adapted", "silent", "bare"]


@dataclass(frozen=True, kw_only=True)
class ModuleCoverage:
    """Whether an adapter reaches one linear module."""

    name: str
    """Full name of the linear module."""
    state: State
    """learns: its adapter has a gradient; silent: it has none; adapted: unmeasured; bare: none."""
    why: str = ""
    """The reason for silent and bare; for the others what could go wrong elsewhere."""


@dataclass(frozen=True, kw_only=True)
class LayerCoverage:
    """What of one layer an adapter reaches."""

    name: str
    """Full name of the layer."""
    kind: str
    """Its class."""
    modules: list[ModuleCoverage]
    """Its linear modules."""
    others: list[str]
    """Other matrices in it, in words."""

    @property
    def is_covered(self) -> bool:
        """Whether an adapter in it learns (or is there, if nothing was measured)."""
        return any(module.state in ("learns", "adapted") for module in self.modules)

    @property
    def can_be_covered(self) -> bool:
        """Whether it holds any module that can take an adapter."""
        return bool(self.modules)

    @property
    def why(self) -> str:
        """One sentence on why it is not covered; empty if it is."""
        if self.is_covered:
            return ""
        if not self.modules:
            return f"no linear module: its weights are {', '.join(self.others)}"
        silent = [f"{_last(m.name)}: {m.why}" for m in self.modules if m.state == "silent"]
        if silent:
            return "no adapter learns; " + "; ".join(silent)
        names = ", ".join(_last(module.name) for module in self.modules)
        return f"no target matches its linear modules ({names})"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an adapter reaches."""

    model: str
    """Class of the model."""
    methods: list[str]
    """PEFT types of the adapters; empty without any."""
    measured: bool
    """Whether a backward pass was run; else only the structure was looked at."""
    layers: list[LayerCoverage]
    """Every layer of the repeating stack, in order."""

    @property
    def covered(self) -> list[LayerCoverage]:
        """Layers with an adapter that learns."""
        return [layer for layer in self.layers if layer.is_covered]

    @property
    def uncovered(self) -> list[LayerCoverage]:
        """Layers that could have one and have not."""
        return [layer for layer in self.layers if layer.can_be_covered and not layer.is_covered]

    @property
    def silent(self) -> list[ModuleCoverage]:
        """Modules whose adapter gets no gradient."""
        return [m for layer in self.layers for m in layer.modules if m.state == "silent"]

    @property
    def is_complete(self) -> bool:
        """Whether every layer that can take an adapter has one, and no adapter is silent."""
        return not self.uncovered and not self.silent

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            **asdict(self),
            "counts": {
                "layers": len(self.layers),
                "covered": len(self.covered),
                "uncovered": len(self.uncovered),
                "impossible": sum(not layer.can_be_covered for layer in self.layers),
                "silent modules": len(self.silent),
            },
            "why": {layer.name: layer.why for layer in self.layers if layer.why},
        }

    def lines(self) -> list[str]:
        """The report for a terminal: one line for each kind of layer and of module."""
        return [self.headline(), *_kind_lines(self.layers)]

    def headline(self) -> str:
        """One sentence."""
        possible = [layer for layer in self.layers if layer.can_be_covered]
        what = "learns in" if self.measured else "sits in"
        method = "+".join(self.methods) or "no adapter"
        text = f"{self.model}, {method}: {what} {len(self.covered)} of {len(possible)} layers"
        rest = len(self.layers) - len(possible)
        return text + (f"; {rest} more have no linear module" if rest else "")


def coverage(
    model: nn.Module, batch: Mapping[str, Any] | None = None, *, gradient: bool = True
) -> Report:
    """Say which layers of a model's repeating stack have an adapter that learns.

    Works for any PEFT method that wraps modules (LoRA, GraLoRA, OFT, IA3, MiSS, MoRe, ...), and
    for adapters put in by transformers' `add_adapter`. The model is left as it was.

    Args:
        model: with adapters, or without (then every layer is bare).
        batch: arguments of the model for the backward pass; default random tokens.
        gradient: measure by a backward pass. False looks at the structure alone, which is all that
            can be done on the meta device.
    """
    layers = layers_of(model)
    adapted = [p for layer in layers for p in layer.projections if p.is_adapted]
    reached = measure_reach(model, adapted, batch) if gradient and adapted else {}
    return Report(
        model=type(_bare(model)).__name__,
        methods=_methods(model),
        measured=bool(reached),
        layers=[_layer(layer, reached) for layer in layers],
    )


def _layer(layer: Layer, reached: Mapping[str, Reach]) -> LayerCoverage:
    return LayerCoverage(
        name=layer.name,
        kind=layer.kind,
        modules=[_module(p, reached.get(p.name)) for p in layer.projections],
        others=layer.others,
    )


def _module(projection: Projection, reach: Reach | None) -> ModuleCoverage:
    read = weight_reads(projection.parent).get(projection.attribute)
    bypass = read.sentence() if read is not None else ""
    if not projection.is_adapted:
        small = smallest_side(projection.base) < MIN_FEATURES
        why = bypass or ("few features" if small else "no target matches it")
        return ModuleCoverage(name=projection.name, state="bare", why=why)
    if reach is None:
        state: State = "silent" if read is not None and not read.only_in_training else "adapted"
        return ModuleCoverage(name=projection.name, state=state, why=bypass)
    if reach.adapter:
        return ModuleCoverage(name=projection.name, state="learns", why=bypass)
    if reach.base:
        why = bypass or "its weight is used past the module"
    else:
        why = "the batch does not use it"
    return ModuleCoverage(name=projection.name, state="silent", why=why)


def _kind_lines(layers: list[LayerCoverage]) -> list[str]:
    groups: dict[tuple[str, ...], list[LayerCoverage]] = {}
    for layer in layers:
        key = (layer.kind, *(_within(layer, module) for module in layer.modules))
        groups.setdefault(key, []).append(layer)
    lines = []
    for (kind, *names), members in groups.items():
        done = sum(layer.is_covered for layer in members)
        lines.append(f"  {kind}: {done} of {len(members)} layers")
        for place, name in enumerate(names):
            lines.append(f"    {name}: {_module_words([x.modules[place] for x in members])}")
        if not names:
            lines.append(f"    {members[0].why}")
    return lines


def _module_words(modules: list[ModuleCoverage]) -> str:
    words = []
    for state in ("learns", "adapted", "silent", "bare"):
        some = [module for module in modules if module.state == state]
        if some:
            why = f" ({some[0].why})" if some[0].why else ""
            words.append(f"{len(some)} {state}{why}")
    return ", ".join(words)


def _within(layer: LayerCoverage, module: ModuleCoverage) -> str:
    if module.name == layer.name:  # a norm that is trained, or a block's own linear module
        return _last(module.name)
    return module.name.removeprefix(f"{layer.name}.")


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _bare(model: nn.Module) -> nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _methods(model: nn.Module) -> list[str]:
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict):
        return []
    types = (getattr(config, "peft_type", "") for config in configs.values())
    return sorted({str(getattr(kind, "value", kind)).lower() for kind in types})
