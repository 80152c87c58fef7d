"""A new adapter that is the weighted sum of others: `model.add_weighted_adapter`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import nn

from manticore.adapters.more.config import MoReConfig
from manticore.adapters.more.layer import MoReLayer


def weighted_config(
    configs: Mapping[str, MoReConfig],
    adapters: Sequence[str],
    layers: Mapping[str, MoReLayer],
    block_rank: int | None = None,
) -> MoReConfig:
    """Settings of a sum: the adapters' blocks, and by default a rank that holds it exactly.

    Args:
        configs: of all adapters, by name.
        layers: those that have any of `adapters`, by full name.
    """
    unknown = sorted(set(adapters) - set(configs))
    if unknown or not adapters:
        raise ValueError(
            f"No adapter {', '.join(unknown) or 'is given'}. Known: {', '.join(configs)}."
        )
    chosen = [configs[name] for name in adapters]
    first = chosen[0]
    for name, config in zip(adapters, chosen, strict=True):
        _refuse_others(name, config, first)
    exact = max(_exact_rank(layer, adapters) for layer in layers.values())
    return dataclasses.replace(
        first,
        block_rank=exact if block_rank is None else block_rank,
        target_modules=list(layers),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        rank_pattern={},
    )


def set_weighted_sum(
    layer: MoReLayer, adapters: Sequence[str], weights: Sequence[float], adapter_name: str
) -> float:
    """Make one layer's new adapter the sum of its others; return the share that is lost."""
    changes = [
        weight * layer.get_delta_weight(name).float()
        for name, weight in zip(adapters, weights, strict=True)
        if name in layer.more_A
    ]
    return layer.set_delta_weight(adapter_name, sum(changes[1:], changes[0]))


def adapted_by(model: nn.Module, adapters: Sequence[str]) -> dict[str, MoReLayer]:
    """Return the layers that have any of the adapters, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, MoReLayer) and any(key in module.more_A for key in adapters)
    }


def _exact_rank(layer: MoReLayer, adapters: Sequence[str]) -> int:
    """The block rank that holds every sum of a layer's adapters.

    A tile of block rank R has at most R / blocks terms, rounded up. Terms add up, so the sum needs
    as many in each tile. A layer may have fewer blocks than its adapter's settings ask for.
    """
    shapes = [layer.shapes[name] for name in adapters if name in layer.shapes]
    blocks = shapes[0].blocks
    return blocks * sum(-(-shape.block_rank // blocks) for shape in shapes)


def _refuse_others(name: str, config: MoReConfig, first: MoReConfig) -> None:
    for setting in ("nblocks", "layout", "nblocks_pattern"):
        wanted, found = getattr(first, setting), getattr(config, setting)
        if found != wanted:
            raise ValueError(
                f"Adapters with the same blocks add up; '{name}' has {setting}={found!r}, the "
                f"first has {wanted!r}. Merge them one after the other instead."
            )
    if config.bias != "none" or config.modules_to_save:
        raise ValueError(
            f"'{name}' trained biases or whole modules (bias, modules_to_save), which are not "
            "added up."
        )
