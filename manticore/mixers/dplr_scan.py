"""A state with a diagonal plus rank-one transition along time, in chunks: the scan of RWKV-7.

    S_t = diag(w_t) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T          y_t = S_t^T q_t

This is the recurrence of Peng et al., 2025 (arXiv:2503.14456) with the state transposed, so that
it is (key, value) as everywhere here. Inside a chunk the rows u_t = a_t^T S_{t-1} solve a
triangular system, as in the delta rule. `dplr_scan` is the one to use; `dplr_scan_naive` is the
recurrence written plainly, and the test of the first. The state stays in float32 or better.

    B batch, H heads, T time, N chunks, C steps in a chunk, K key size, V value size
"""

from __future__ import annotations

import torch
from torch import Tensor

from manticore.mixers.chunk_states import check_shapes, cut, run_chunks

CHUNK = 16
_LARGEST_EXPONENT = 80.0
"""exp of it is 5e34; float32 ends at 3e38, and a factor of a key or a query must fit between."""


def dplr_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None = None,
    *,
    fastest_decay: float,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence along time at a cost linear in it; differentiable, works under vmap.

    Splitting a sequence anywhere and handing the final state on gives the same numbers. A step
    with b = k = 0 and log_decay = 0 leaves the state as it was.

    Args:
        q, k, a, b: (batch, heads, seq, key), any float dtype.
        v: (batch, heads, seq, value).
        log_decay: (batch, heads, seq, key), log w_t, each entry in [fastest_decay, 0].
        initial_state: (batch, heads, key, value); None: zeros.
        fastest_decay: a bound that every `log_decay` keeps. A chunk divides by the decay over
            its length, so a strong decay allows short chunks only, and one below -80 none.
        chunk: steps in a chunk at most; changes the speed only.

    Returns:
        y: (batch, heads, seq, value) in v's dtype.
        final_state: (batch, heads, key, value), float32 (float64 for float64 inputs).
    """
    _check(q, k, v, a, b, log_decay, initial_state)
    seq_len = q.shape[2]
    chunk = min(chunk, seq_len, _longest_chunk(fastest_decay))
    if seq_len == 1:
        return dplr_scan_naive(q, k, v, a, b, log_decay, initial_state)
    # A product that autocast runs in bfloat16 would lose the state's low bits.
    with torch.autocast(q.device.type, enabled=False):
        wide, state = _widen(q, k, v, a, b, log_decay, initial_state=initial_state)
        maps = _chunk_maps(*cut(chunk, *wide))
        y, state = run_chunks(*maps, state, seq_len)
    return y.to(v.dtype), state


def dplr_scan_naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what `dplr_scan` does, one line per equation, at any decay; arguments as there."""
    _check(q, k, v, a, b, log_decay, initial_state)
    with torch.autocast(q.device.type, enabled=False):
        wide, state = _widen(q, k, v, a, b, log_decay, initial_state=initial_state)
        outputs = []
        for q_t, k_t, v_t, a_t, b_t, log_w in zip(*(x.unbind(2) for x in wide), strict=True):
            u = a_t.unsqueeze(-2) @ state  # (B, H, 1, V)
            state = torch.exp(log_w).unsqueeze(-1) * state + b_t.unsqueeze(-1) * u
            state = state + k_t.unsqueeze(-1) * v_t.unsqueeze(-2)
            outputs.append((q_t.unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, dim=2).to(v.dtype), state


def _longest_chunk(fastest_decay: float) -> int:
    if not -_LARGEST_EXPONENT <= fastest_decay < 0:
        raise ValueError(
            f"fastest_decay={fastest_decay} must be in [-{_LARGEST_EXPONENT:g}, 0). Bound the "
            "decay (RWKV-7's is at least -0.6066), or use dplr_scan_naive, which takes any."
        )
    return int(_LARGEST_EXPONENT / -fastest_decay)


def _chunk_maps(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four parts of each chunk's map, see `chunk_states`; inputs (B, H, N, C, ...)."""
    steps, n_keys = q.shape[-2:]
    total = log_decay.cumsum(-2)
    at_end = log_decay.sum(-2, keepdim=True)
    since_start, until_end = torch.exp(total), torch.exp(at_end - total)
    from_start = torch.exp(-total)
    a, q = a * torch.exp(total - log_decay), q * since_start
    # Four triangles of one product: (a, q) reads what (b, k) wrote.
    reads = torch.cat([a, q], dim=-2) @ torch.cat([b * from_start, k * from_start], dim=-2).mT
    a_reads, q_reads = reads.split(steps, dim=-2)
    a_b, a_k = a_reads.split(steps, dim=-1)  # a reads before the write of its step
    q_b, q_k = q_reads.split(steps, dim=-1)  # q reads after it
    # u = `new` + `old` S solves (1 - a_b) u = a S + a_k v; only what is below the diagonal of
    # a_b is read, and the diagonal is 1.
    right = torch.cat([a, a_k.tril(-1) @ v], dim=-1)
    solved = torch.linalg.solve_triangular(-a_b, right, upper=False, unitriangular=True)
    through_b = torch.cat([q_b.tril(), (b * until_end).mT], dim=-2) @ solved  # (.., C + K, K + V)
    through_k = torch.cat([q_k.tril(), (k * until_end).mT], dim=-2) @ v
    old, new = through_b.split([n_keys, v.shape[-1]], dim=-1)
    (old_read, old_kept), (new_read, new_kept) = (
        part.split([steps, n_keys], dim=-2) for part in (old, new + through_k)
    )
    remains = torch.diag_embed(torch.exp(at_end.squeeze(-2)))
    return q + old_read, new_read, remains + old_kept, new_kept


def _widen(*by_time: Tensor, initial_state: Tensor | None) -> tuple[list[Tensor], Tensor]:
    q, _, v, *_ = by_time
    dtype = torch.promote_types(v.dtype, torch.float32)
    if initial_state is None:
        initial_state = v.new_zeros(*v.shape[:2], q.shape[-1], v.shape[-1], dtype=dtype)
    return [tensor.to(dtype) for tensor in by_time], initial_state.to(dtype)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
) -> None:
    like_q, state_shape = tuple(q.shape), (*q.shape[:2], q.shape[-1], v.shape[-1])
    check_shapes(
        {
            "k": (k, like_q),
            "v": (v, (*like_q[:3], v.shape[-1])),
            "a": (a, like_q),
            "b": (b, like_q),
            "log_decay": (log_decay, like_q),
            "initial_state": (initial_state, state_shape),
        },
        q,
    )
