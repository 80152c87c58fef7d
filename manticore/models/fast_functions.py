"""A layer of transformers with its own forward, in which some functions are ours.

The layers of Mamba-2 and of gated DeltaNet differ from family to family in what stands around
their scan. The scan itself and the convolution are functions that `forward` looks up by name in
its module. `calling` gives the same forward with ours under those names: masks, caches, norms and
gates stay transformers' code, and the module itself keeps its functions.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from functools import cache, wraps
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.integrations.accelerate import force_accelerate_hooks

from manticore.mixers.causal_conv import causal_conv

_KERNELS = {
    "causal_conv1d_fn": "causal_conv1d",
    "mamba2_chunk_scan": "mamba_ssm",
    "mamba2_selective_state_update": "mamba_ssm",
    "torch_chunk_gated_delta_rule": "fla",
    "torch_recurrent_gated_delta_rule": "fla",
}
"""Packages with the CUDA kernels that transformers runs under these names when they are there."""


def calling(forward: Callable[..., Any], **ours: Callable[..., Any]) -> Callable[..., Any]:
    """Return `forward` with `ours` in place of the functions of those names.

    A forward that does not call all of them, in another version of transformers, is returned as
    it is. On CUDA with the package of `_KERNELS` the kernels stay.
    """
    plain: Any = inspect.unwrap(forward)
    if not ours.keys() <= set(plain.__code__.co_names):
        return forward
    theirs = plain.__globals__
    exchanged = {name: _unless_kernel(own, theirs[name], name) for name, own in ours.items()}
    bound = FunctionType(
        plain.__code__,
        {**theirs, **exchanged},
        plain.__name__,
        plain.__defaults__,
        plain.__closure__,
    )
    bound.__kwdefaults__ = plain.__kwdefaults__
    return force_accelerate_hooks("conv1d")(bound)


def uses_kernel(tensor: Tensor, name: str) -> bool:
    """Whether transformers has a CUDA kernel for this tensor under the name of a function."""
    return tensor.is_cuda and _is_installed(_KERNELS[name])


def convolve(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **_: Any,
) -> Tensor:
    """Do what `causal_conv1d_fn` does: (batch, channels, seq) by (channels, taps), from zeros."""
    x = hidden_states.transpose(1, 2).to(weight.dtype)
    y = causal_conv(F.pad(x, (0, 0, weight.shape[-1] - 1, 0)), weight, bias)
    if activation is not None:
        y = ACT2FN[activation](y)
    return y.to(hidden_states.dtype).transpose(1, 2)


def own_state(state: Tensor | None) -> Tensor | None:
    """A state from a cache, which is overwritten in place: a graph that needs it keeps a copy."""
    return state.clone() if state is not None and torch.is_grad_enabled() else state


def _unless_kernel(
    own: Callable[..., Any], theirs: Callable[..., Any], name: str
) -> Callable[..., Any]:
    @wraps(theirs)
    def choose(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        # Packed sequences are the kernels' alone; without those theirs says so.
        is_packed = any(kwargs.get(key) is not None for key in ("cu_seqlens", "seq_idx"))
        function = theirs if is_packed or uses_kernel(first, name) else own
        return function(first, *args, **kwargs)

    return choose


@cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
