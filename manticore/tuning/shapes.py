"""Shapes of MoRe adapters, module kind by module kind, and the best ones under a budget.

One class of matrices spans LoRA (one block), block-diagonal and Monarch shapes, so the adapter's
architecture is a choice of two whole numbers for every kind of module, or of no adapter there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from manticore.adapters.monarch import MonarchShape
from manticore.adapters.stack import is_linear
from manticore.adapters.targets import default_targets, shortest_endings
from manticore.config.errors import did_you_mean

NONE = (0, 0)
"""No adapter on a kind of module."""
Choice = tuple[int, int]
"""(nblocks, block_rank)."""
Allocation = dict[str, Choice]
"""Kind -> choice."""


@dataclass(frozen=True, kw_only=True)
class ModuleKind:
    """Modules of one name and one shape, which get one choice."""

    ending: str
    """What tables call it: how the names end, and the shape where one ending has several."""
    endings: tuple[str, ...] = ()
    """Endings of names that PEFT matches with these modules alone; (): `ending` does."""
    modules: tuple[str, ...]
    """Their full names."""
    in_features: int
    out_features: int

    @property
    def targets(self) -> tuple[str, ...]:
        """For PEFT's `target_modules`."""
        return self.endings or (self.ending,)

    def shape(self, choice: Choice) -> MonarchShape:
        """The shape of the adapter on one of them."""
        return MonarchShape(
            in_features=self.in_features,
            out_features=self.out_features,
            nblocks=choice[0],
            block_rank=choice[1],
        )

    def parameters(self, choice: Choice) -> int:
        """Of all of them together."""
        return 0 if choice == NONE else len(self.modules) * self.shape(choice).num_parameters


def module_kinds(model: nn.Module, targets: Sequence[str] | None = None) -> list[ModuleKind]:
    """The kinds of modules that can take an adapter; one ending with two shapes is two kinds.

    Args:
        targets: endings of names; None: every layer that can take one.

    Raises:
        ValueError: an ending that matches nothing.
    """
    endings = default_targets(model) if targets is None else list(targets)
    names = [name for name, _ in model.named_modules() if name]
    linear = {name: sizes_of(m) for name, m in model.named_modules() if is_linear(m)}
    return [kind for ending in endings for kind in _kinds(ending, linear, names)]


def _kinds(
    ending: str, linear: Mapping[str, tuple[int, int]], names: Sequence[str]
) -> list[ModuleKind]:
    found = {n: sizes for n, sizes in linear.items() if n == ending or n.endswith(f".{ending}")}
    if not found:
        known = sorted({name.rpartition(".")[2] for name in linear})
        meant = did_you_mean(ending, [*known, *linear])
        raise ValueError(
            f"No module's name ends with {ending!r}.{meant} Known: {', '.join(known)}."
        )
    groups: dict[tuple[int, int], list[str]] = {}
    for name, sizes in found.items():
        groups.setdefault(sizes, []).append(name)
    kinds = []
    for (inputs, outputs), modules in groups.items():
        others = [name for name in names if name not in modules]
        is_only = len(groups) == 1
        kinds.append(
            ModuleKind(
                ending=ending if is_only else f"{ending} ({inputs} to {outputs})",
                endings=() if is_only else tuple(shortest_endings(modules, others)),
                modules=tuple(modules),
                in_features=inputs,
                out_features=outputs,
            )
        )
    return kinds


def sizes_of(module: Any) -> tuple[int, int]:
    """Inputs and outputs of nn.Linear or of transformers' Conv1D."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return int(module.nx), int(module.nf)


def choices(kind: ModuleKind, nblocks: Sequence[int], ranks: Sequence[int]) -> list[Choice]:
    """No adapter, and all shapes that fit into a module of this kind."""
    smaller = min(kind.in_features, kind.out_features)
    return [NONE, *((n, r) for n in nblocks for r in ranks if n <= smaller and r * n <= smaller)]


def allocate(
    kinds: Sequence[ModuleKind],
    values: Mapping[str, Mapping[Choice, float]],
    budget: int,
) -> Allocation:
    """The choices of greatest total value that fit into a budget of parameters; exact.

    A multiple-choice knapsack. Kinds are added one after the other to a list of partial
    allocations. One that costs no less and is worth no more than another can be dropped: whatever
    follows, the other does as well. What is left of the list stays short.

    Args:
        values: kind -> choice -> what it is worth.
        budget: most parameters in all.
    """
    partial: list[tuple[int, float, Allocation]] = [(0, 0.0, {})]
    for kind in kinds:
        grown = [
            (spent + kind.parameters(choice), worth + value, {**chosen, kind.ending: choice})
            for spent, worth, chosen in partial
            for choice, value in values[kind.ending].items()
            if spent + kind.parameters(choice) <= budget
        ]
        partial = _undominated(grown)
    return partial[-1][2]


def _undominated(
    partial: Sequence[tuple[int, float, Allocation]],
) -> list[tuple[int, float, Allocation]]:
    """By rising cost, those that are worth more than every cheaper one."""
    kept: list[tuple[int, float, Allocation]] = []
    for entry in sorted(partial, key=lambda entry: (entry[0], -entry[1])):
        if not kept or entry[1] > kept[-1][1]:
            kept.append(entry)
    return kept


def uniform(kinds: Sequence[ModuleKind], choice: Choice) -> Allocation:
    """The same choice everywhere."""
    return {kind.ending: choice for kind in kinds}


def parameters_of(kinds: Sequence[ModuleKind], allocation: Allocation) -> int:
    """Parameters of an allocation."""
    return sum(kind.parameters(allocation[kind.ending]) for kind in kinds)


def settings_of(
    kinds: Sequence[ModuleKind], allocation: Allocation
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`MoReConfig`'s settings and target modules for an allocation.

    Raises:
        ValueError: it has no adapter at all.
    """
    chosen = {
        target: allocation[kind.ending]
        for kind in kinds
        for target in kind.targets
        if allocation[kind.ending] != NONE
    }
    if not chosen:
        raise ValueError("An allocation without any adapter cannot be trained. Raise the budget.")
    common = max(chosen.values(), key=list(chosen.values()).count)
    settings: dict[str, Any] = {"nblocks": common[0], "block_rank": common[1]}
    counts = {target: n for target, (n, _) in chosen.items() if n != common[0]}
    ranks = {target: r for target, (_, r) in chosen.items() if r != common[1]}
    settings |= {"nblocks_pattern": counts} if counts else {}
    settings |= {"rank_pattern": ranks} if ranks else {}
    return settings, tuple(chosen)


def title_of(allocation: Allocation) -> str:
    """What tables call it: "4 x 2", or kind by kind."""
    if len(set(allocation.values())) == 1:
        n, r = next(iter(allocation.values()))
        return f"{n} x {r}"
    groups: dict[Choice, list[str]] = {}
    for ending, choice in allocation.items():
        groups.setdefault(choice, []).append(ending)
    parts = [
        f"{'none' if choice == NONE else f'{choice[0]} x {choice[1]}'} on {', '.join(endings)}"
        for choice, endings in groups.items()
    ]
    return "; ".join(parts)
