"""Faster, exact forward passes bound to the layers of one model, never to a library.

`bind_fast_paths` gives the recurrent layers of one model instance subclasses whose scan is ours,
with the same parameters, names and numbers: Mamba-1 (`fast_mamba`), Mamba-2 (`fast_mamba2`), gated
DeltaNet (`fast_delta`) and RWKV-4 (`fast_rwkv`). Other models in the process, and the classes in
transformers, stay as they were.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from manticore.models.fast_delta import FAST_DELTA
from manticore.models.fast_mamba import FAST_MAMBA
from manticore.models.fast_mamba2 import FAST_MAMBA2
from manticore.models.fast_rwkv import FAST_RWKV

_FAST: dict[type[nn.Module], Any] = {
    stock: fast
    for stock, fast in (FAST_MAMBA | FAST_MAMBA2 | FAST_DELTA | FAST_RWKV).items()
    # A forward that `fast_functions.calling` could not change is no faster.
    if fast.forward is not stock.forward
}
_STOCK = {fast: stock for stock, fast in _FAST.items()}


def bind_fast_paths(base: nn.Module) -> dict[str, str]:
    """Give every slow mixer inside `base` the fast forward; binding twice changes nothing.

    Parameters, buffers, hooks and state-dict names stay. Works before or after PEFT injects its
    layers, on copies and with gradient checkpointing.

    Returns:
        What `describe_fast_paths` says afterwards; empty if there was nothing to bind.
    """
    for module in base.modules():
        if type(module) in _FAST:
            _set_class(module, _FAST[type(module)])
    return describe_fast_paths(base)


def unbind_fast_paths(base: nn.Module) -> None:
    """Give the mixers inside `base` transformers' forward back."""
    for module in base.modules():
        if type(module) in _STOCK:
            _set_class(module, _STOCK[type(module)])


def has_stock_scan(base: nn.Module) -> bool:
    """Whether a mixer with a fast forward runs transformers' own one inside `base`."""
    return any(type(module) in _FAST for module in base.modules())


def describe_fast_paths(base: nn.Module) -> dict[str, str]:
    """Say which scans the mixers inside `base` use where their weights are now.

    Returns:
        {} without such mixers, else for a run's record the name of the scan ("selective_scan"
        with Mamba-1, "decayed_scan" with Mamba-2, "delta_scan" with gated DeltaNet, "wkv_scan"
        with RWKV-4) and whose it is: "torch-step" for one step at a time, "torch-chunk" for
        chunks (both ours), "cuda-kernel", or "transformers" (nothing is bound, or left on CUDA).
    """
    names: dict[str, set[str]] = {}
    for module in base.modules():
        if type(module) in _FAST:
            names.setdefault(_FAST[type(module)].scan_name, set()).add("transformers")
        elif type(module) in _STOCK:
            bound: Any = module
            names.setdefault(bound.scan_name, set()).add(bound.scan_in_use())
    return {scan: "+".join(sorted(found)) for scan, found in names.items()}


def _set_class(mixer: nn.Module, cls: type[nn.Module]) -> None:
    mixer.__class__ = cls
    if "_old_forward" in mixer.__dict__:  # accelerate wrapped this instance and calls this one
        mixer._old_forward = cls.forward.__get__(mixer)
