"""The (gated) delta rule along time, in chunks (arXiv:2406.06484, arXiv:2412.06464).

    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T          y_t = S_t^T q_t

A write first takes out what the key held. Inside a chunk the products of I - b k k^T are kept in
the WY form, S_t = a.. S_0 + sum_j a.. k_j u_j^T, where the rows u solve a triangular system.
`delta_scan` is the one to use; `delta_scan_naive` is the rule written plainly, and the test of
the first. The state stays in float32 or better.

    B batch, H heads, T time, N chunks, C steps in a chunk, K key size, V value size
"""

from __future__ import annotations

import torch
from torch import Tensor

from manticore.mixers.chunk_states import check_shapes, cut

CHUNK = 32


def delta_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Run the delta rule along time at a cost linear in it; differentiable, works under vmap.

    Splitting a sequence anywhere and handing the final state on gives the same numbers. A step
    with beta = 0 and log_decay = 0 leaves the state as it was.

    Args:
        q, k: (batch, heads, seq, key), any float dtype. Keys of norm 1 keep the rule stable.
        v: (batch, heads, seq, value).
        beta: (batch, heads, seq), the strength of a write: 0 to 1, or to 2 for eigenvalues of
            the transition down to -1 (arXiv:2411.12537).
        log_decay: (batch, heads, seq), log a_t <= 0; None: no decay (the plain delta rule).
        initial_state: (batch, heads, key, value); None: zeros.
        chunk: steps in a chunk; changes the speed only.

    Returns:
        y: (batch, heads, seq, value) in v's dtype.
        final_state: (batch, heads, key, value), float32 (float64 for float64 inputs).
    """
    if q.dim() == 4 and q.shape[2] == 1:
        return delta_scan_naive(q, k, v, beta, log_decay, initial_state)
    _check(q, k, v, beta, log_decay, initial_state)
    seq_len = q.shape[2]
    # A product that autocast runs in bfloat16 would lose the state's low bits.
    with torch.autocast(q.device.type, enabled=False):
        wide, state = _widen(q, k, v, beta, log_decay, initial_state)
        y, state = _run_chunks(*cut(min(chunk, seq_len), *wide), state=state)
    return y[:, :, :seq_len].to(v.dtype), state


def delta_scan_naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what `delta_scan` does, one line per equation; arguments and results as there."""
    _check(q, k, v, beta, log_decay, initial_state)
    with torch.autocast(q.device.type, enabled=False):
        wide, state = _widen(q, k, v, beta, log_decay, initial_state)
        outputs = []
        for q_t, k_t, v_t, beta_t, *decay in zip(*(x.unbind(2) for x in wide), strict=True):
            if decay:
                state = torch.exp(decay[0])[..., None, None] * state
            held = (k_t.unsqueeze(-2) @ state).squeeze(-2)  # (B, H, V)
            write = beta_t.unsqueeze(-1) * (v_t - held)
            state = state + k_t.unsqueeze(-1) * write.unsqueeze(-2)
            outputs.append((q_t.unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, dim=2).to(v.dtype), state


def _run_chunks(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Chunks (B, H, N, C, ...) in the WY form; y is (B, H, N C, V).

    Only the rows u wait for the state: u = new - old S. A map from state to state, K x K for each
    chunk, is never made.
    """
    keys, remains, read = k, torch.ones_like(q[..., :1, :1]), beta.unsqueeze(-1) * k
    overlaps, scores = read @ k.mT, q @ k.mT  # (B, H, N, C, C)
    if decay:
        total = decay[0].cumsum(-1)
        between = _decay_between(total)
        overlaps, scores = overlaps * between, scores * between
        since_start = torch.exp(total).unsqueeze(-1)
        q, read = q * since_start, read * since_start
        keys, remains = k * between[..., -1, :, None], since_start[..., -1:, :]
    # Old and new solve one system. Only the part of `overlaps` below the diagonal is read, the
    # diagonal is 1.
    right = torch.cat([read, beta.unsqueeze(-1) * v], dim=-1)
    solved = torch.linalg.solve_triangular(overlaps, right, upper=False, unitriangular=True)
    starts, rows = [], []
    for solved_n, keys_n, remains_n in zip(
        *(x.unbind(2) for x in (solved, keys.mT, remains)), strict=True
    ):
        old, new = solved_n.split([k.shape[-1], v.shape[-1]], dim=-1)
        starts.append(state)
        rows.append(new - old @ state)
        state = remains_n * state + keys_n @ rows[-1]
    y = q @ torch.stack(starts, dim=2) + scores.tril() @ torch.stack(rows, dim=2)
    return y.flatten(2, 3), state


def _decay_between(total: Tensor) -> Tensor:
    """exp(total_i - total_j) for i >= j, else 0; (..., C) to (..., C, C)."""
    steps = total.shape[-1]
    difference = total.unsqueeze(-1) - total.unsqueeze(-2)
    future = torch.ones(steps, steps, dtype=torch.bool, device=total.device).triu(1)
    # Before the exponential: above the diagonal it would overflow, and inf * 0 is not 0.
    return torch.exp(difference.masked_fill(future, float("-inf")))


def _widen(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    dtype = torch.promote_types(v.dtype, torch.float32)
    if state is None:
        state = v.new_zeros(*v.shape[:2], q.shape[-1], v.shape[-1], dtype=dtype)
    by_time = [tensor.to(dtype) for tensor in (q, k, v, beta, log_decay) if tensor is not None]
    return by_time, state.to(dtype)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    by_step, state_shape = q.shape[:3], (*q.shape[:2], q.shape[-1], v.shape[-1])
    check_shapes(
        {
            "k": (k, tuple(q.shape)),
            "v": (v, (*by_step, v.shape[-1])),
            "beta": (beta, tuple(by_step)),
            "log_decay": (log_decay, tuple(by_step)),
            "initial_state": (initial_state, state_shape),
        },
        q,
    )
