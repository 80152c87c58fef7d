"""The selective scan of Mamba-1, exact and fast in plain torch (Gu & Dao, 2023, arXiv:2312.00752).

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t          equation 2a, discretised as in section 3.2
    y_t = C_t h_t + D x_t,   then   y_t silu(z_t)      equation 2b and the gate of figure 3

`selective_scan` is the one to use; `selective_scan_naive` is the same sum written plainly, and
the test of the first. Both take any float dtype and keep the state in float32 or better.

    B batch, T time, D d_inner, N state size per channel
    G groups (stacked models under vmap, else 1), R rows of the batch in one group
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from manticore.mixers.scan_kernels import LOG2_E, scan_segments


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the selective state space along time, with gradients for every input.

    Splitting a sequence anywhere and handing the final state on gives the same numbers as one
    call. Memory for the backward pass is a few dozen states, not one per step. Works under
    `torch.func.vmap` and `torch.func.grad`; a second derivative raises an error.

    Args:
        x: (batch, seq, d_inner), any float dtype.
        dt: (batch, seq, d_inner), step sizes after softplus.
        A: (d_inner, state), negative.
        B: (batch, seq, state), input weights.
        C: (batch, seq, state), output weights.
        D: (d_inner), the skip connection, or None.
        z: (batch, seq, d_inner), the gate before silu, or None.
        initial_state: (batch, d_inner, state), or None for zeros.

    Returns:
        y: (batch, seq, d_inner) in x's dtype.
        final_state: (batch, d_inner, state), float32 (float64 for float64 inputs).
    """
    _check_shapes(x, dt, A, B, C, D, z, initial_state)
    wide = torch.promote_types(x.dtype, torch.float32)
    x_wide, dt_wide, A_wide, state = _widen(x, dt, A, initial_state, wide)
    if x.shape[1] == 1:
        y, state = _one_step(x_wide, dt_wide, A_wide, B.to(wide), C.to(wide), state)
    else:
        y, state = _many_steps(x_wide, dt_wide, A_wide, B.to(wide), C.to(wide), state)
    return _skip_and_gate(y, x_wide, D, z).to(x.dtype), state


def selective_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Do what `selective_scan` does to one token, without a dimension of time or a check.

    Args:
        x, dt, z: (batch, d_inner).
        B, C: (batch, state).
        state: (batch, d_inner, state), float32 or wider.

    Returns:
        y: (batch, d_inner) in x's dtype, and the state after it.
    """
    wide = state.dtype
    x_wide, dt = x.to(wide), dt.to(wide)
    drive = (dt * x_wide).unsqueeze(-1) * B.to(wide).unsqueeze(1)  # (B, D, N)
    state = torch.addcmul(drive, torch.exp(dt.unsqueeze(-1) * A.to(wide)), state)
    y = (state * C.to(wide).unsqueeze(1)).sum(dim=-1)
    return _skip_and_gate(y, x_wide, D, z).to(x.dtype), state


def selective_scan_naive(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what `selective_scan` does, one line per equation; arguments and results as there."""
    _check_shapes(x, dt, A, B, C, D, z, initial_state)
    wide = torch.promote_types(x.dtype, torch.float32)
    x_wide, dt_wide, A_wide, state = _widen(x, dt, A, initial_state, wide)
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt_wide[:, t, :, None] * A_wide)  # (B, D, N)
        drive = (dt_wide[:, t] * x_wide[:, t])[:, :, None] * B[:, t, None, :].to(wide)
        state = decay * state + drive
        outputs.append((state * C[:, t, None, :].to(wide)).sum(-1))  # (B, D)
    return _skip_and_gate(torch.stack(outputs, dim=1), x_wide, D, z).to(x.dtype), state


def _widen(
    x: Tensor, dt: Tensor, A: Tensor, initial_state: Tensor | None, wide: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # The state is a long sum with slow decays: bfloat16 would stop adding to it (8 bits).
    if initial_state is None:
        initial_state = x.new_zeros(x.shape[0], *A.shape, dtype=wide)
    return x.to(wide), dt.to(wide), A.to(wide), initial_state.to(wide)


def _one_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Decode one token: plain differentiable operations, nothing to set up."""
    decay = torch.exp2(dt * (A.t() * LOG2_E))  # (B, N, D), as the cache holds it in memory
    state = torch.addcmul(B.mT * (dt * x), decay, state.mT)
    return (C.mT * state).sum(-2, keepdim=True), state.mT


def _many_steps(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    def time_major(t: Tensor) -> Tensor:
        return t.transpose(0, 1).unsqueeze(1).contiguous()  # (B, T, ...) -> (T, 1, B, ...)

    steps = time_major(dt)
    y, state = scan_segments(
        steps * x.transpose(0, 1).unsqueeze(1),  # in the layout of its first factor: no copy
        steps,
        A.t().unsqueeze(0).contiguous(),  # (1, N, D)
        time_major(B),
        time_major(C),
        state.transpose(1, 2).unsqueeze(0).contiguous(),  # (1, B, N, D)
    )
    return y.squeeze(1).transpose(0, 1), state.squeeze(0).transpose(1, 2)


def _skip_and_gate(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    if D is not None:
        y = torch.addcmul(y, x, D.to(y.dtype))
    # The first factor sets the layout, and what follows wants z's (batch first).
    return y if z is None else F.silu(z.to(y.dtype)) * y


def _check_shapes(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    if x.dim() != 3 or x.shape[1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (batch, seq >= 1, d_inner).")
    if A.dim() != 2:
        raise ValueError(f"A has shape {tuple(A.shape)}; it must be (d_inner, state).")
    batch, seq_len, d_inner = x.shape
    state_size = A.shape[-1]
    expected = {
        "dt": (dt, (batch, seq_len, d_inner)),
        "A": (A, (d_inner, state_size)),
        "B": (B, (batch, seq_len, state_size)),
        "C": (C, (batch, seq_len, state_size)),
        "D": (D, (d_inner,)),
        "z": (z, (batch, seq_len, d_inner)),
        "initial_state": (initial_state, (batch, d_inner, state_size)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, but x {tuple(x.shape)} and "
                f"A {tuple(A.shape)} ask for {shape}."
            )
