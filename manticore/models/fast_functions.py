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

_KERNELS = {"mamba2_chunk_scan": "mamba_ssm", "torch_chunk_gated_delta_rule": "fla"}
"""Packages with the CUDA kernels that transformers runs under these names when they are there."""


def calling(forward: Callable[..., Any], **ours: Callable[..., Any]) -> Callable[..., Any]:
    """Return `forward` with `ours` in place of the functions of those names.

    A forward that does not call all of them, in another version of transformers, is returned as
    it is. On CUDA transformers' stay: its kernels where their package is, else chunks as large as
    a GPU likes.
    """
    plain: Any = inspect.unwrap(forward)
    if not ours.keys() <= set(plain.__code__.co_names):
        return forward
    theirs = plain.__globals__
    exchanged = {name: _unless_cuda(own, theirs[name]) for name, own in ours.items()}
    bound = FunctionType(
        plain.__code__,
        {**theirs, **exchanged},
        plain.__name__,
        plain.__defaults__,
        plain.__closure__,
    )
    bound.__kwdefaults__ = plain.__kwdefaults__
    return force_accelerate_hooks("conv1d")(bound)


def whose(tensor: Tensor, name: str) -> str:
    """What runs on this tensor under the name of a function, as `describe_fast_paths` says it."""
    if not tensor.is_cuda:
        return "torch-chunk"
    return "cuda-kernel" if is_installed(_KERNELS[name]) else "transformers"


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


def _unless_cuda(own: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(theirs)
    def choose(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        # Packed sequences are the kernels' alone; without those theirs says so.
        is_packed = any(kwargs.get(key) is not None for key in ("cu_seqlens", "seq_idx"))
        return (theirs if is_packed or first.is_cuda else own)(first, *args, **kwargs)

    return choose


@cache
def is_installed(package: str) -> bool:
    """Whether a package could be imported."""
    return importlib.util.find_spec(package) is not None
