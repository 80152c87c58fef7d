"""Which code runs the delta rules and RWKV's sums: ours in plain torch, or another library's.

As in `scan_choice`: `kernel="fla"` asks for the kernels of flash-linear-attention, which need a
GPU and Triton, give the same numbers up to rounding, and have no rule for `torch.func.vmap`.
They multiply in the dtype of the values. Nothing falls back to another kernel in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manticore.mixers.decayed_scan import decayed_scan
from manticore.mixers.delta_scan import delta_scan
from manticore.mixers.dplr_scan import dplr_scan
from manticore.mixers.scan_choice import Kernel, _fla

Scan = Callable[..., tuple[Tensor, Tensor]]


def choose_delta_scan(kernel: Kernel) -> Scan:
    """The function that does what `delta_scan` does.

    Raises:
        ValueError: `fla` without a GPU or without flash-linear-attention; so all here.
    """
    return _choose(kernel, delta_scan, fla_delta_scan, "gated_delta_rule")


def choose_dplr_scan(kernel: Kernel) -> Scan:
    """The function that does what `dplr_scan` does."""
    return _choose(kernel, dplr_scan, fla_dplr_scan, "rwkv7")


def choose_bonus_scan(kernel: Kernel) -> Scan:
    """The function that does what `decayed_scan` does with a bonus."""
    return _choose(kernel, decayed_scan, fla_bonus_scan, "rwkv6")


def fla_delta_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what `delta_scan` does, by flash-linear-attention's kernels."""
    # The rule without decay has kernels of its own, but they refuse float32.
    g = torch.zeros_like(beta) if log_decay is None else log_decay
    inputs = {"q": q, "k": k, "v": v, "beta": beta}
    return _run("gated_delta_rule", inputs, {"g": g}, initial_state)


def fla_dplr_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None = None,
    *,
    fastest_decay: float,
) -> tuple[Tensor, Tensor]:
    """Do what `dplr_scan` does, by flash-linear-attention's kernels."""
    inputs = {"r": q, "k": k, "v": v, "a": a, "b": b}
    return _run("rwkv7", inputs, {"w": log_decay}, initial_state)


def fla_bonus_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None = None,
    *,
    bonus: Tensor,
) -> tuple[Tensor, Tensor]:
    """Do what `decayed_scan` does with a bonus, by flash-linear-attention's kernels."""
    inputs = {"r": q, "k": k, "v": v}
    return _run("rwkv6", inputs, {"w": log_decay}, initial_state, u=bonus.to(v.dtype))


def _choose(kernel: Kernel, ours: Scan, theirs: Scan, module: str) -> Scan:
    if kernel == "torch":
        return ours
    if not torch.cuda.is_available():
        raise ValueError("kernel='fla' needs a GPU, and torch sees none. Use kernel='torch'.")
    _fla(module, f"chunk_{module}")
    return theirs


def _run(
    module: str,
    inputs: dict[str, Tensor],
    decay: dict[str, Tensor],
    initial_state: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    # Theirs are (batch, seq, heads, ...). One token goes to the recurrent kernels.
    v = inputs["v"]
    by_time = {name: x.to(v.dtype).transpose(1, 2).contiguous() for name, x in inputs.items()}
    by_time |= {name: x.float().transpose(1, 2).contiguous() for name, x in decay.items()}
    form = "fused_recurrent" if v.shape[2] == 1 else "chunk"
    kernel = _fla(module, f"{form}_{module}")
    y, state = kernel(
        **by_time, **options, scale=1.0, initial_state=initial_state, output_final_state=True
    )
    return y.transpose(1, 2), state
