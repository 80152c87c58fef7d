"""Which code runs a sum with decay: ours in plain torch, or the kernels of another library.

`kernel="fla"` asks for those of flash-linear-attention, which need a GPU and Triton. They take
and give the same numbers up to rounding; nothing falls back to another kernel in silence.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from manticore.mixers.decayed_scan import decayed_scan

Kernel = Literal["torch", "fla"]
KERNELS = ("torch", "fla")

Scan = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]


def check_kernel(kernel: str) -> None:
    """Refuse a kernel that does not exist."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r} must be one of {', '.join(KERNELS)}.")


def choose_scan(kernel: Kernel) -> Scan:
    """The function that runs (q, k, v, log_decay, initial_state), as `decayed_scan` does.

    Raises:
        ValueError: `fla` without a GPU or without flash-linear-attention.
    """
    if kernel == "torch":
        return decayed_scan
    if not torch.cuda.is_available():
        raise ValueError("kernel='fla' needs a GPU, and torch sees none. Use kernel='torch'.")
    _fla("gla", "chunk_gla")
    return fla_scan


def fla_scan(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Do what `decayed_scan` does without a bonus, by flash-linear-attention's kernels.

    One token goes to its recurrent kernels. It has no rule for `torch.func.vmap`.
    """
    form = "fused_recurrent" if q.shape[2] == 1 else "chunk"
    if q.shape[1] < v.shape[1]:  # theirs know no heads that share queries and keys
        q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], dim=1) for x in (q, k))
    by_time = [x.transpose(1, 2).contiguous() for x in (q, k, v)]  # (B, T, H, ...)
    options = {"scale": 1.0, "initial_state": initial_state, "output_final_state": True}
    if log_decay is not None and log_decay.shape[-1] == q.shape[-1]:
        name = "gk" if form == "fused_recurrent" else "g"
        decay = {name: log_decay.float().transpose(1, 2).contiguous()}
        y, state = _fla("gla", f"{form}_gla")(*by_time, **decay, **options)
    else:
        g = None if log_decay is None else log_decay.float().squeeze(-1).transpose(1, 2)
        y, state = _fla("simple_gla", f"{form}_simple_gla")(*by_time, g=g, **options)
    return y.transpose(1, 2), state


def _fla(module: str, name: str) -> Callable[..., Any]:
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(f"fla.ops.{module}"), name)
    except ImportError as error:
        raise ValueError(
            "kernel='fla' needs flash-linear-attention: pip install flash-linear-attention. "
            f"It could not be imported ({error}). Use kernel='torch' without it."
        ) from error
    return found
