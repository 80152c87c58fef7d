"""Sums along time with decay: what linear attention, GLA, retention, Mamba-2 and RWKV-5/6 share.

    S_t = diag(a_t) S_{t-1} + k_t v_t^T                      a_t = exp(log_decay_t), 0 to 1
    y_t = S_t^T q_t                                          the own token undecayed
    y_t = (S_{t-1} + diag(bonus) k_t v_t^T)^T q_t            with a bonus, as RWKV has it

A chunk is built by doubling: two neighbours of b steps make one of 2b, and the only new scores,
of the later half's queries with the earlier half's keys, need decays down to the border between
them. Those are products of numbers up to 1, so nothing overflows, nothing is divided, and a
decay of exactly 0 is as good as any other (in contrast to quotients of cumulated decays, see
arXiv:2312.06635, section 4). `decayed_scan` is the one to use; `decayed_scan_naive` is the sum
written plainly, and the test of the first. The state stays in float32 or better.

    B batch, H heads, G heads of the keys, T time, N chunks, C steps in a chunk, K key size,
    V value size
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from manticore.mixers.chunk_states import check_shapes, cut

CHUNK = 32


def decayed_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None = None,
    *,
    bonus: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Run the sum along time at a cost linear in it; differentiable, works under vmap.

    Splitting a sequence anywhere and handing the final state on gives the same numbers. A step
    with k = 0 and log_decay = 0 leaves the state as it was.

    Args:
        q, k: (batch, heads, seq, key), any float dtype. No scaling is applied. With one decay for
            each head and no bonus they may have fewer heads than v: as many of its heads, one
            after another, share each of theirs.
        v: (batch, heads, seq, value).
        log_decay: (batch, heads, seq, key), one decay for each channel of the key, or
            (batch, heads, seq, 1), one for each head; at most 0, minus infinity is allowed.
            None: no decay.
        initial_state: (batch, heads, key, value); None: zeros.
        bonus: (heads, key), the weight of the own token in place of 1; the state is then read
            before the step's own decay. None: the state is read after the step.
        chunk: steps in a chunk, a power of two; changes the speed only.

    Returns:
        y: (batch, heads, seq, value) in v's dtype.
        final_state: (batch, heads, key, value), float32 (float64 for float64 inputs).
    """
    _check(q, k, v, log_decay, initial_state, bonus, chunk)
    seq_len = q.shape[2]
    if seq_len == 1:
        return decayed_scan_naive(q, k, v, log_decay, initial_state, bonus=bonus)
    # A product that autocast runs in bfloat16 would lose the state's low bits.
    with torch.autocast(q.device.type, enabled=False):
        wide, state = _widen(q, k, v, log_decay, initial_state)
        chunk = min(chunk, 1 << (seq_len - 1).bit_length())
        q_cut, k_cut, v_cut, log_decay_cut = cut(chunk, *wide)  # (B, H, N, C, ...)
        # Where one decay serves all channels, its products are made once and not K times.
        run = _run_by_channel if wide[3].shape[3] > 1 else _run_by_head
        y, state = run(q_cut, k_cut, v_cut, log_decay_cut.exp(), bonus, state)
    return y[:, :, :seq_len].to(v.dtype), state


def decayed_scan_naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None = None,
    *,
    bonus: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what `decayed_scan` does, one line per equation; arguments and results as there."""
    _check(q, k, v, log_decay, initial_state, bonus, CHUNK)
    with torch.autocast(q.device.type, enabled=False):
        wide, state = _widen(q, k, v, log_decay, initial_state)
        if q.shape[1] < v.shape[1]:
            wide[:2] = (x.repeat_interleave(v.shape[1] // x.shape[1], dim=1) for x in wide[:2])
        outputs = []
        for q_t, k_t, v_t, log_decay_t in zip(*(x.unbind(2) for x in wide), strict=True):
            write = k_t.unsqueeze(-1) * v_t.unsqueeze(-2)  # (B, H, K, V)
            before, state = state, log_decay_t.exp().unsqueeze(-1) * state + write
            read = state if bonus is None else before + bonus.to(write.dtype)[..., None] * write
            outputs.append((q_t.unsqueeze(-2) @ read).squeeze(-2))
    return torch.stack(outputs, dim=2).to(v.dtype), state


def _run_by_channel(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Chunks (B, H, N, C, ...) with a decay for each channel; y is (B, H, N C, V)."""
    own = _own_scores(q, k, bonus)
    scores, queries, keys, left = _double_up(q, k, own, decay, bonus is not None)
    starts, state = _states(keys.mT @ v, left.mT, state)
    return (scores @ v + queries @ starts).flatten(2, 3), state


def _run_by_head(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """As `_run_by_channel`, for decay (B, H, N, C, 1): the products of q and k do without it.

    Those are made once for all heads that share q and k (B, G, N, C, K). The decays go to the
    values, which lie side by side, head by head, in one product with the keys or the state.
    """
    one, groups = torch.ones_like(decay), (q.shape[1], -1)
    own = one.squeeze(-1) * (bonus is None)
    between, since_start, until_end, left = (
        x.unflatten(1, groups)  # (B, G, H / G, N, C, ...)
        for x in _double_up(one, one, own, decay, bonus is not None)
    )
    scores = (q @ k.mT).unsqueeze(2) * between
    if bonus is not None:
        scores = scores + torch.diag_embed(_own_scores(q, k, bonus)).unsqueeze(2)
    v, state = v.unflatten(1, groups), state.unflatten(1, groups)
    heads = v.shape[2], v.shape[-1]
    written = k.mT @ (v * until_end).movedim(2, -2).flatten(-2)
    starts, state = _states(
        written.unflatten(-1, heads), left.movedim(2, -2), state.movedim(2, -2)
    )  # (B, G, N, K, H / G, V)
    read = (q @ starts.flatten(-2)).unflatten(-1, heads) * since_start.movedim(2, -2)
    y = (read + (scores @ v).movedim(2, -2)).movedim(-2, 2)
    return y.flatten(3, 4).flatten(1, 2), state.movedim(-2, 2).flatten(1, 2)


def _own_scores(q: Tensor, k: Tensor, bonus: Tensor | None) -> Tensor:
    own = q * k
    return (own if bonus is None else own * bonus.to(own.dtype)[:, None, None]).sum(-1)


def _double_up(
    q: Tensor, k: Tensor, own: Tensor, decay: Tensor, exclusive: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Build the chunks up from single steps.

    Args:
        q, k: (..., C, K).
        own: (..., C), the score of each step with itself.
        decay: (..., C, K).
        exclusive: whether a query reads the state before its own decay.

    Returns:
        The scores of a chunk's steps with each other (..., C, C), the queries that read the
        state before it and the keys that write the state after it (..., C, K), and what it
        leaves of the former (..., 1, K).
    """
    # Blocks of b steps each: (..., C / b, b, K). A block's queries hold the decay since its
    # start, its keys the decay until its end, and `left` the decay of all its steps.
    left = decay.unsqueeze(-2)
    queries = (q if exclusive else q * decay).unsqueeze(-2)
    keys, scores = k.unsqueeze(-2), own[..., None, None]
    while queries.shape[-3] > 1:
        (q_old, q_new), (k_old, k_new), (left_old, left_new), (s_old, s_new) = (
            (x[..., 0::2, :, :], x[..., 1::2, :, :]) for x in (queries, keys, left, scores)
        )
        below = torch.cat([q_new @ k_old.mT, s_new], dim=-1)
        scores = torch.cat([F.pad(s_old, (0, s_old.shape[-1])), below], dim=-2)
        queries = torch.cat([q_old, q_new * left_old], dim=-2)
        keys = torch.cat([k_old * left_new, k_new], dim=-2)
        left = left_old * left_new
    return scores.squeeze(-3), queries.squeeze(-3), keys.squeeze(-3), left.squeeze(-3)


def _states(written: Tensor, left: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Hand the state (B, H, ...) from chunk to chunk: those at their starts, and the last."""
    starts = []
    for written_n, left_n in zip(written.unbind(2), left.unbind(2), strict=True):
        starts.append(state)
        state = left_n * state + written_n
    return torch.stack(starts, dim=2), state


def _widen(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    # The state is a long sum with slow decays: bfloat16 would stop adding to it (8 bits).
    dtype = torch.promote_types(v.dtype, torch.float32)
    if log_decay is None:
        log_decay = v.new_zeros(*v.shape[:3], 1)
    if state is None:
        state = v.new_zeros(*v.shape[:2], q.shape[-1], v.shape[-1], dtype=dtype)
    return [x.to(dtype) for x in (q, k, v, log_decay)], state.to(dtype)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    bonus: Tensor | None,
    chunk: int,
) -> None:
    batch, groups, seq_len, n_keys = q.shape if q.dim() == 4 else (0, 1, 0, 0)
    one_decay = log_decay is None or log_decay.shape[-1] == 1
    # Heads that share q and k; what does not divide is named as a wrong shape of v.
    shared = v.shape[1] // groups if one_decay and bonus is None and v.dim() == 4 else 1
    heads = groups * max(1, shared)
    expected = {
        "k": (k, tuple(q.shape)),
        "v": (v, (batch, heads, seq_len, v.shape[-1])),
        "log_decay": (log_decay, (batch, heads, seq_len, 1 if one_decay else n_keys)),
        "initial_state": (initial_state, (batch, heads, n_keys, v.shape[-1])),
        "bonus": (bonus, (heads, n_keys)),
    }
    check_shapes(expected, q)
    if chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f"chunk={chunk} must be a power of two, such as {CHUNK}.")
