"""The inner loop of the selective scan: segments of time, written for memory traffic.

A scan moves far more bytes than it computes, so every choice here is about where a state lives:

* time-major, channels last, (T, G, R, N, D): each step is one contiguous block and the inner
  loop runs over D; C_t h_t and both sums over channels become batched matrix products.
* a segment of a few dozen steps fits the cache. Only its first state is kept for the backward
  pass, which replays the segment (checkpointing; Chen et al., 2016, arXiv:1604.06174).
* exp(dt A) is computed as exp2(dt (A log2 e)): the same rounding, several times faster where
  torch's exp goes through a vector library that is slow on some processors.

Adjoint, with g_t = dL/dh_t (reverse time), a_t = exp(dt_t A), u_t = dt_t x_t:

    g_t  = C_t gy_t + a_{t+1} g_{t+1}          q_t = g_t a_t h_{t-1}
    du_t = sum_n B_t g_t     dB_t = sum_d u_t g_t     dC_t = sum_d gy_t h_t
    ddt_t = sum_n A q_t      dA = sum_t,r dt_t q_t    dh_0 = a_1 g_1
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LOG2_E = 1.4426950408889634
_SEGMENT_ELEMENTS = 1 << 20
"""State elements in one segment: 4 MiB of float32, so that three buffers share the cache."""
_SEGMENT_STEPS = (4, 64)
"""Fewer steps waste memory on checkpoints, more gain nothing once dispatch is amortised."""


def scan_segments(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor
) -> tuple[Tensor, Tensor]:
    """Scan contiguous time-major inputs; differentiable once, works under vmap.

    Args:
        u, dt: (seq, groups, rows, d_inner); u = dt * x.
        A: (groups, state, d_inner).
        B, C: (seq, groups, rows, state).
        initial_state: (groups, rows, state, d_inner).

    Returns:
        y: (seq, groups, rows, d_inner); final_state, shaped like initial_state.
    """
    y, final_state, _ = _Scan.apply(u, dt, A, B, C, initial_state)
    return y, final_state


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _forward(*(tensor.contiguous() for tensor in inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        u, dt, A, B, C, _ = inputs
        checkpoints = output[2]
        ctx.mark_non_differentiable(checkpoints)
        ctx.save_for_backward(u, dt, A, B, C, checkpoints)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_final: Tensor, _: Tensor) -> Any:
        saved = ctx.saved_tensors
        needs_A = ctx.needs_input_grad[2]
        return _ScanGradient.apply(grad_y, grad_final, *saved, needs_A)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> Any:
        size = info.batch_size
        axes = (1, 1, 0, 1, 1, 0)
        folded = [_fold(t, d, size, a) for t, d, a in zip(inputs, in_dims, axes, strict=True)]
        outputs = _Scan.apply(*folded)
        return _unfold_all(outputs, size, (1, 0, 1))


class _ScanGradient(torch.autograd.Function):
    """The backward pass as a function of its own, so that it also works under vmap."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor | None, ...]:
        *tensors, needs_A = inputs
        return _backward(needs_A, *(tensor.contiguous() for tensor in tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            "selective_scan can be differentiated once, and a second derivative was asked for. "
            "Use selective_scan_naive for second derivatives."
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        size = info.batch_size
        *tensors, needs_A = inputs
        axes = (1, 0, 1, 1, 0, 1, 1, 1)
        folded = [_fold(t, d, size, a) for t, d, a in zip(tensors, in_dims[:-1], axes, strict=True)]
        outputs = _ScanGradient.apply(*folded, needs_A)
        return _unfold_all(outputs, size, (1, 1, 0, 1, 1, 0))


def _fold(tensor: Tensor, dim: int | None, size: int, axis: int) -> Tensor:
    """Merge a mapped dimension into the group axis; what is not mapped is repeated."""
    if dim is None:
        tensor = tensor.unsqueeze(axis).expand(*tensor.shape[:axis], size, *tensor.shape[axis:])
    else:
        tensor = tensor.movedim(dim, axis)
    return tensor.flatten(axis, axis + 1)


def _unfold_all(outputs: tuple[Tensor | None, ...], size: int, axes: tuple[int, ...]) -> Any:
    unfolded = tuple(
        None if t is None else t.unflatten(a, (size, t.shape[a] // size))
        for t, a in zip(outputs, axes, strict=True)
    )
    dims = tuple(None if t is None else a for t, a in zip(outputs, axes, strict=True))
    return unfolded, dims


def _segment_steps(seq_len: int, elements_per_step: int) -> int:
    low, high = _SEGMENT_STEPS
    return min(seq_len, max(low, min(high, _SEGMENT_ELEMENTS // max(1, elements_per_step))))


def _forward(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    seq_len = u.shape[0]
    steps = _segment_steps(seq_len, state.numel())
    starts = range(0, seq_len, steps)
    y = torch.empty_like(u)
    checkpoints = state.new_empty(len(starts), *state.shape)
    buffers = _Buffers(steps, state)
    log2_decay = (A * LOG2_E).unsqueeze(1)  # (G, 1, N, D)
    for k, start in enumerate(starts):
        checkpoints[k].copy_(state)
        part = slice(start, min(start + steps, seq_len))
        _, states = buffers.replay(state, u[part], dt[part], log2_decay, B[part])
        torch.bmm(_rows(C[part]), _blocks(states[1:]), out=_rows(y[part]))  # sum over n
        state = states[-1]
    return y, state.clone(), checkpoints


def _backward(
    needs_A: bool,
    grad_y: Tensor,
    grad_final: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    checkpoints: Tensor,
) -> tuple[Tensor | None, ...]:
    seq_len, n_segments = u.shape[0], checkpoints.shape[0]
    steps = _segment_steps(seq_len, grad_final.numel())
    assert n_segments == -(-seq_len // steps)
    du, ddt, dB, dC = (torch.empty_like(t) for t in (u, dt, B, C))
    dA = torch.zeros_like(grad_final) if needs_A else None
    carry = grad_final.clone()  # a_{t+1} g_{t+1}, (G, R, N, D)
    buffers = _Buffers(steps, carry)
    adjoints_buffer = carry.new_empty(steps, *carry.shape)
    rates = A.unsqueeze(1)  # (G, 1, N, D)
    log2_decay = rates * LOG2_E
    for k in reversed(range(n_segments)):
        part = slice(k * steps, min((k + 1) * steps, seq_len))
        decay, states = buffers.replay(checkpoints[k], u[part], dt[part], log2_decay, B[part])
        adjoints = adjoints_buffer[: decay.shape[0]]
        torch.mul(C[part].unsqueeze(-1), grad_y[part].unsqueeze(-2), out=adjoints)
        _run_back(adjoints, decay, carry)
        torch.bmm(_rows(grad_y[part]), _blocks(states[1:]).mT, out=_rows(dC[part]))
        torch.bmm(_rows(u[part]), _blocks(adjoints).mT, out=_rows(dB[part]))
        torch.bmm(_rows(B[part]), _blocks(adjoints), out=_rows(du[part]))
        through_decay = decay.mul_(adjoints)
        carry.copy_(through_decay[0])
        through_decay.mul_(states[:-1])  # q
        torch.sum(torch.mul(through_decay, rates, out=adjoints), dim=-2, out=ddt[part])
        if dA is not None:
            for step_q, step_dt in zip(through_decay.unbind(0), dt[part].unbind(0), strict=True):
                dA.addcmul_(step_q, step_dt.unsqueeze(-2))
    return du, ddt, None if dA is None else dA.sum(1), dB, dC, carry


def _run_back(adjoints: Tensor, decay: Tensor, carry: Tensor) -> None:
    """Turn C_t gy_t into g_t in place, from the last step of a segment to its first."""
    adjoint, decays = adjoints.unbind(0), decay.unbind(0)
    adjoint[-1].add_(carry)
    for t in range(len(adjoint) - 2, -1, -1):
        adjoint[t].addcmul_(decays[t + 1], adjoint[t + 1])


class _Buffers:
    """Room for one segment, allocated once per call and used for every segment."""

    def __init__(self, steps: int, state: Tensor) -> None:
        self.decay = state.new_empty(steps, *state.shape)
        self.states = state.new_empty(steps + 1, *state.shape)

    def replay(
        self, state: Tensor, u: Tensor, dt: Tensor, log2_decay: Tensor, B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute a segment's decays (steps, G, R, N, D) and its states, the first one included."""
        decay, states = self.decay[: u.shape[0]], self.states[: u.shape[0] + 1]
        torch.mul(dt.unsqueeze(-2), log2_decay, out=decay)
        torch.exp2(decay, out=decay)
        states[0].copy_(state)
        torch.mul(B.unsqueeze(-1), u.unsqueeze(-2), out=states[1:])
        steps = states.unbind(0)
        for previous, current, a in zip(steps, steps[1:], decay.unbind(0), strict=False):
            current.addcmul_(a, previous)
        return decay, states


def _rows(tensor: Tensor) -> Tensor:
    """View (S, G, R, n) as (S G R, 1, n): one row vector per batched product."""
    return tensor.view(-1, 1, tensor.shape[-1])


def _blocks(tensor: Tensor) -> Tensor:
    """View (S, G, R, N, D) as (S G R, N, D)."""
    return tensor.view(-1, *tensor.shape[-2:])
