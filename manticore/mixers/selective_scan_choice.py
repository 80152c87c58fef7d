"""Which code runs the selective scan: ours in plain torch, or the kernels of mamba-ssm.

`kernel="mamba-ssm"` asks for the kernels of Mamba's authors, which need a GPU. They give the same
numbers up to rounding and have no rule for `torch.func.vmap`; nothing falls back to another kernel
in silence. Theirs starts from an empty state, so a piece that follows a state goes through their
kernel for one token, token by token: give whole prompts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from manticore.mixers.selective_scan import selective_scan

SelectiveKernel = Literal["torch", "mamba-ssm"]
SELECTIVE_KERNELS = ("torch", "mamba-ssm")

_SCAN = ("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")
_UPDATE = ("mamba_ssm.ops.triton.selective_state_update", "selective_state_update")


def check_selective_kernel(kernel: str) -> None:
    """Refuse a kernel that does not exist."""
    if kernel not in SELECTIVE_KERNELS:
        raise ValueError(f"kernel={kernel!r} must be one of {', '.join(SELECTIVE_KERNELS)}.")


def choose_selective_scan(kernel: SelectiveKernel) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function that does what `selective_scan` does.

    Raises:
        ValueError: `mamba-ssm` without a GPU or without the library.
    """
    if kernel == "torch":
        return selective_scan
    if not torch.cuda.is_available():
        raise ValueError("kernel='mamba-ssm' needs a GPU, and torch sees none. Use kernel='torch'.")
    for place in (_SCAN, _UPDATE):
        _load(*place)
    return mamba_ssm_scan


def mamba_ssm_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what `selective_scan` does, by mamba-ssm's kernels; arguments and results as there.

    Behind a state there is no gradient, as their kernel for one token has none.
    """
    if initial_state is not None:
        return _token_by_token(x, dt, A, B, C, D, z, initial_state)
    by_channel = {
        name: value.transpose(1, 2).contiguous()
        for name, value in {"u": x, "delta": dt.to(x.dtype), "B": B, "C": C}.items()
    }
    y, state = _load(*_SCAN)(
        **by_channel,
        A=A.float(),
        D=None if D is None else D.float(),
        z=None if z is None else z.transpose(1, 2).contiguous(),
        return_last_state=True,
    )
    return y.transpose(1, 2), state


def _token_by_token(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor,
) -> tuple[Tensor, Tensor]:
    update = _load(*_UPDATE)
    state = initial_state.float().clone()  # their kernel writes into it
    outputs = []
    for t in range(x.shape[1]):
        now = (x[:, t], dt[:, t].to(x.dtype), A, B[:, t], C[:, t])
        outputs.append(update(state, *now, D=D, z=None if z is None else z[:, t]))
    return torch.stack(outputs, dim=1), state


def _load(module: str, name: str) -> Callable[..., Any]:
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ValueError(
            "kernel='mamba-ssm' needs mamba-ssm: pip install mamba-ssm causal-conv1d. "
            f"It could not be imported ({error}). Use kernel='torch' without it."
        ) from error
    return found
