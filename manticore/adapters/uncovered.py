"""Layers that nobody adapts: found from the structure alone, and told at `get_peft_model`."""

from __future__ import annotations

import warnings
from collections import Counter

from torch import nn

from manticore.adapters.stack import Layer, layers_of


class UncoveredLayersWarning(UserWarning):
    """Some layers of the repeating stack have no adapter."""


def warn_uncovered(model: nn.Module, stacklevel: int = 2) -> list[str]:
    """Warn if layers of the repeating stack have no adapter; return their names.

    To adapt attention and not the MLPs beside it is a choice, and so is naming layers by number:
    neither is warned about. What gets a warning is a block without any adapter, or a token mixer
    without one, while others have some: on a hybrid that is most often an accident.

    Args:
        model: a model with adapters, after `peft.get_peft_model`.
    """
    layers = [layer for layer in layers_of(model) if layer.projections]
    adapted = {_block(layer) for layer in layers if layer.is_adapted}
    bare = [
        layer
        for layer in layers
        if not layer.is_adapted and (_block(layer) not in adapted or not _mixes_channels(layer))
    ]
    if not bare or not adapted or _chooses_layers(model):
        return []
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(x.kind for x in bare).items())
    modules = sorted({p.attribute for layer in bare for p in layer.projections})
    warnings.warn(
        f"{len(bare)} of {len(layers)} layers have no adapter where others do ({kinds}; first "
        f"{bare[0].name}). Their linear modules: {', '.join(modules)}. To reach them, give "
        "target_modules=default_targets(model), from manticore.adapters.targets; `manticore adapt "
        "coverage` says more.",
        UncoveredLayersWarning,
        stacklevel=stacklevel + 1,
    )
    return [layer.name for layer in bare]


def _block(layer: Layer) -> str:
    return layer.name.rpartition(".")[0]


def _mixes_channels(layer: Layer) -> bool:
    """Whether a layer is an MLP or a mixture of experts, by the names that families give them."""
    name = f"{layer.name.rpartition('.')[2]} {layer.kind}".lower()
    return any(word in name for word in ("mlp", "feed_forward", "ffn", "moe", "intermediate"))


def _chooses_layers(model: nn.Module) -> bool:
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict):
        return False
    names = ("layers_to_transform", "layer_indexes")
    return any(getattr(config, name, None) for config in configs.values() for name in names)
