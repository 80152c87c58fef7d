"""Modules and optimizers as named tensors, and back, with nothing stored twice.

A name is ``<module>/<parameter>``. Of tensors that are tied the first name is stored
and the others are aliases. Parameters that are frozen and in no optimizer need not be
stored at all: a hash says whether the ones at hand are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

# Chosen by the machine, not part of the state: they may differ where a run continues.
_KERNEL_KEYS = {"params", "foreach", "fused", "capturable", "differentiable", "maximize"}


@dataclass(frozen=True)
class NamedTensors:
    """The tensors of some modules, by what a checkpoint does with them."""

    stored: dict[str, Tensor] = field(default_factory=dict)
    """Tensors to write, each once."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Further names of tied tensors, and the name each is stored under."""
    frozen: dict[str, Tensor] = field(default_factory=dict)
    """Tensors that need only a hash."""


def module_tensors(
    modules: Mapping[str, nn.Module], trained: set[int] | None = None
) -> NamedTensors:
    """Collect the state of modules.

    Args:
        trained: identities of parameters in an optimizer. If given, other parameters with
            ``requires_grad=False`` count as frozen; None stores everything.
    """
    found = NamedTensors()
    seen: dict[int, str] = {}
    for name, tensor in _state(modules):
        if id(tensor) in seen:
            found.aliases[name] = seen[id(tensor)]
            continue
        seen[id(tensor)] = name
        is_frozen = (
            trained is not None
            and isinstance(tensor, nn.Parameter)
            and not tensor.requires_grad
            and id(tensor) not in trained
        )
        (found.frozen if is_frozen else found.stored)[name] = tensor
    return found


def optimizer_state(
    optimizers: Mapping[str, Optimizer], modules: Mapping[str, nn.Module]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return moments as tensors ``<optimizer>/<module>/<parameter>/<key>``; the rest as JSON."""
    names = parameter_names(modules)
    tensors: dict[str, Tensor] = {}
    records: dict[str, Any] = {}
    for label, optimizer in optimizers.items():
        groups, scalars = [], {}
        for group in optimizer.param_groups:
            members = [_name_of(p, names, label) for p in group["params"]]
            settings = {k: v for k, v in group.items() if k not in _KERNEL_KEYS}
            groups.append({"params": members, "settings": settings})
            for name, parameter in zip(members, group["params"], strict=True):
                for key, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):
                        tensors[f"{label}/{name}/{key}"] = value
                    else:
                        scalars[f"{name}/{key}"] = value
        records[label] = {"groups": groups, "scalars": scalars}
    return tensors, records


def restore_optimizers(
    optimizers: Mapping[str, Optimizer],
    modules: Mapping[str, nn.Module],
    tensors: Mapping[str, Tensor],
    records: Mapping[str, Any],
) -> None:
    """Put moments and group settings back, by name. `optimizer_differences` comes first."""
    names = parameter_names(modules)
    for label, optimizer in optimizers.items():
        record = records[label]
        by_key: dict[str, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            owner, _, entry = key.rpartition("/")
            if owner.startswith(f"{label}/"):
                by_key.setdefault(owner.removeprefix(f"{label}/"), {})[entry] = tensor
        for key, value in record["scalars"].items():
            owner, _, entry = key.rpartition("/")
            by_key.setdefault(owner, {})[entry] = value
        optimizer.state.clear()
        for group, saved in zip(optimizer.param_groups, record["groups"], strict=True):
            settings = dict(saved["settings"])
            if "betas" in settings:
                settings["betas"] = tuple(settings["betas"])
            group.update(settings)
            for parameter in group["params"]:
                entries = by_key.get(names[id(parameter)], {})
                if entries:
                    optimizer.state[parameter] = {
                        key: _place(key, value, parameter, group) for key, value in entries.items()
                    }


def tensor_differences(expected: NamedTensors, saved: Mapping[str, Tensor]) -> list[str]:
    """List, in words, what keeps saved tensors from fitting the modules."""
    lines = _name_differences(expected.stored, saved)
    for name in sorted(expected.stored.keys() & saved.keys()):
        here, there = expected.stored[name], saved[name]
        if here.shape != there.shape or here.dtype != there.dtype:
            lines.append(
                f"{name}: saved {tuple(there.shape)} {there.dtype}, "
                f"here {tuple(here.shape)} {here.dtype}"
            )
    return lines


def optimizer_differences(
    optimizers: Mapping[str, Optimizer],
    modules: Mapping[str, nn.Module],
    records: Mapping[str, Any],
) -> list[str]:
    """List, in words, what keeps saved optimizer records from fitting the optimizers."""
    lines = _name_differences(optimizers, records, "optimizer ")
    _, here = optimizer_state(optimizers, modules)
    for label in sorted(optimizers.keys() & records.keys()):
        ours = [set(group["params"]) for group in here[label]["groups"]]
        theirs = [set(group["params"]) for group in records[label]["groups"]]
        if ours != theirs:
            moved = sorted(set().union(*ours) ^ set().union(*theirs))
            what = ", ".join(moved[:5]) if moved else "the same parameters in other groups"
            lines.append(f"optimizer {label} trains other parameters: {what}")
    return lines


def tensor_hash(tensor: Tensor) -> str:
    """Return the sha256 of a tensor's bytes, remembered until an in-place operation changes it."""
    known = _HASHES.get(tensor)
    version = (tensor.data_ptr(), tensor._version)
    if known is None or known[0] != version:
        flat = tensor.detach().contiguous().cpu().reshape(-1)
        known = (version, hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest())
        _HASHES[tensor] = known
    return known[1]


# Frozen weights are large and a checkpoint is frequent: hash them once per process.
_HASHES: Any = WeakTensorKeyDictionary()


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the CPU, none of which shares memory with another."""
    used: set[int] = set()
    ready: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().contiguous().cpu()
        storage = plain.untyped_storage().data_ptr()
        ready[name] = plain.clone() if storage in used else plain
        used.add(storage)
    return ready


def parameter_names(modules: Mapping[str, nn.Module]) -> dict[int, str]:
    """Map the identity of each parameter to its first name."""
    names: dict[int, str] = {}
    for label, module in modules.items():
        for name, parameter in module.named_parameters():
            names.setdefault(id(parameter), f"{label}/{name}")
    return names


def trained_identities(optimizers: Mapping[str, Optimizer]) -> set[int]:
    """Return the identities of all parameters that an optimizer holds."""
    return {id(p) for o in optimizers.values() for group in o.param_groups for p in group["params"]}


def _state(modules: Mapping[str, nn.Module]) -> Iterable[tuple[str, Tensor]]:
    for label, module in modules.items():
        for name, value in module.state_dict(keep_vars=True).items():
            if isinstance(value, Tensor):
                yield f"{label}/{name}", value


def _name_of(parameter: nn.Parameter, names: Mapping[int, str], label: str) -> str:
    if id(parameter) not in names:
        raise ValueError(
            f"Optimizer {label!r} trains a parameter of shape {tuple(parameter.shape)} that "
            "belongs to none of the modules to be saved. Add its module."
        )
    return names[id(parameter)]


def _place(key: str, value: Any, parameter: nn.Parameter, group: Mapping[str, Any]) -> Any:
    if not isinstance(value, Tensor):
        return value
    # torch keeps the step counter on the CPU unless the kernel reads it on the device.
    on_device = key != "step" or group.get("fused") or group.get("capturable")
    return value.to(parameter.device if on_device else "cpu", copy=True)


def _name_differences(here: Iterable[str], there: Iterable[str], prefix: str = "") -> list[str]:
    ours, theirs = set(here), set(there)
    return [f"{prefix}{name}: only in the checkpoint" for name in sorted(theirs - ours)] + [
        f"{prefix}{name}: missing from the checkpoint" for name in sorted(ours - theirs)
    ]
