"""Which modules get an adapter, of which shape, and what is wrong with a choice."""

from __future__ import annotations

import copy
import difflib
import re
import warnings
from typing import TYPE_CHECKING

from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _get_in_out_features,
    _maybe_include_all_linear_layers,
)
from peft.utils import resolve_quantization_backend
from peft.utils.constants import DUMMY_TARGET_MODULES, INCLUDE_LINEAR_LAYERS_SHORTHAND
from peft.utils.other import get_pattern_key
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from manticore.adapters.monarch import MonarchShape
from manticore.adapters.more.config import MoReConfig

if TYPE_CHECKING:
    from manticore.adapters.more.model import MoReModel


def shape_of(config: MoReConfig, name: str, target: nn.Module) -> MonarchShape:
    """Give the shape of the adapter of one module, or say why it cannot have one."""
    plain = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    _check_kind(name, plain)
    n, m = _get_in_out_features(plain)
    ranks, counts = config.rank_pattern or {}, config.nblocks_pattern or {}
    try:
        return MonarchShape(
            in_features=int(n),
            out_features=int(m),
            nblocks=counts.get(get_pattern_key(counts.keys(), name), config.nblocks),
            block_rank=ranks.get(get_pattern_key(ranks.keys(), name), config.block_rank),
            layout=config.layout,
        )
    except ValueError as error:
        raise ValueError(
            f"{error} The layer is '{name}': give it fewer blocks with "
            f"nblocks_pattern={{'{name.rpartition('.')[2]}': ...}}, or leave it out with "
            "exclude_modules."
        ) from None


def check_targets(tuner: MoReModel, config: MoReConfig, model: nn.Module) -> None:
    """Raise for the first target that cannot be adapted; warn of names that match nothing."""
    if config.target_modules == DUMMY_TARGET_MODULES:
        return
    if config.target_modules == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        _leave_out_bypassed(config, model)
    # 'all-linear' is resolved on a copy: PEFT resolves it on the real configuration later.
    resolved = _maybe_include_all_linear_layers(copy.copy(config), model)
    inside = tuple(
        f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    )
    names = []
    for name, module in model.named_modules():
        if not name or name.startswith(inside):
            continue
        if tuner._check_target_module_exists(resolved, name):
            shape_of(config, name, module)
            names.append(name)
    if names:
        _warn_of_unused(config, model, names)


def _leave_out_bypassed(config: MoReConfig, model: nn.Module) -> None:
    """Exclude what 'all-linear' would find and nobody calls; other targets were asked for by name.

    The names go into the configuration, so that a saved adapter is loaded the same way.
    """
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, NonDynamicallyQuantizableLinear)
    ]
    if not names:
        return
    excluded = config.exclude_modules
    if isinstance(excluded, str):
        config.exclude_modules = f"(?:{excluded})|{'|'.join(map(re.escape, names))}"
    else:
        config.exclude_modules = [*sorted(excluded or ()), *names]
    warnings.warn(
        f"'all-linear' leaves out {', '.join(names[:3])}{' and others' if names[3:] else ''}: "
        "nn.MultiheadAttention reads the weight and never calls the module, so an adapter there "
        "would do nothing.",
        stacklevel=2,
    )


def closest_names(config: MoReConfig, model: nn.Module) -> str:
    """Suggest names of modules that are close to those asked for and absent."""
    absent = _absent(config, model)
    return _suggestions(absent, model) if absent else ""


def _absent(config: MoReConfig, model: nn.Module) -> list[str]:
    """Targets that no module's name ends with."""
    targets = config.target_modules
    if isinstance(targets, str) or not targets:
        return []
    every = [f".{name}" for name, _ in model.named_modules()]
    return [t for t in sorted(targets) if not any(name.endswith(f".{t}") for name in every)]


def _suggestions(wanted: list[str], model: nn.Module) -> str:
    able = {name for name, module in model.named_modules() if _is_adaptable(module)}
    endings = sorted({name.rpartition(".")[2] for name in able} | able)
    close = {want: difflib.get_close_matches(want, endings, n=3, cutoff=0.5) for want in wanted}
    known = sorted({name.rpartition(".")[2] for name in able})
    hints = [f"'{want}': {', '.join(names)}" for want, names in close.items() if names]
    return f" Closest names: {'; '.join(hints) or 'none'}. Known endings: {', '.join(known)}."


def _warn_of_unused(config: MoReConfig, model: nn.Module, names: list[str]) -> None:
    """Warn of entries that match no module although others do."""
    unused = _absent(config, model) if config.layers_to_transform is None else []
    if unused:
        warnings.warn(
            f"target_modules {unused} match no module.{_suggestions(unused, model)}",
            stacklevel=2,
        )
    for key in config.nblocks_pattern or {}:
        if not any(re.match(rf"(.*\.)?({key})$", name) for name in names):
            warnings.warn(f"nblocks_pattern {key!r} matches no targeted module.", stacklevel=2)


def _check_kind(name: str, plain: nn.Module) -> None:
    if isinstance(plain, NonDynamicallyQuantizableLinear):
        raise TypeError(
            f"'{name}' is the output projection of nn.MultiheadAttention, which reads its weight "
            "and never calls it: an adapter there would do nothing. Leave it out with "
            f"exclude_modules=['{name}']."
        )
    if not _is_adaptable(plain):
        raise TypeError(
            f"Target module '{name}' ({type(plain).__name__}) is not supported. Supported: "
            "nn.Linear, transformers' Conv1D, nn.Embedding, and linear layers quantized by the "
            "backends that PEFT knows."
        )


def _is_adaptable(module: nn.Module) -> bool:
    plain = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if isinstance(plain, (nn.Linear, Conv1D, nn.Embedding)):
        return True
    # A torchao layer is an nn.Linear, so no quantization settings are needed to recognise others.
    backend = resolve_quantization_backend(plain, get_apply_tensor_subclass=object)
    return backend is not None and backend.layer_type == "linear"
