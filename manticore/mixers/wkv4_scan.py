"""RWKV-4's token mixing: a mean of values, weighted by keys that fade (arXiv:2305.13048, eq. 16).

    A_t = e^w A_{t-1} + e^{k_t} v_t        B_t = e^w B_{t-1} + e^{k_t}            w < 0
    y_t = (A_{t-1} + e^{u + k_t} v_t) / (B_{t-1} + e^{u + k_t})

Sums are kept as a_t = A_t e^{-p_t}, b_t = B_t e^{-p_t} with p_t = max(p_{t-1} + w, k_t), so that
every factor is at most 1. y does not depend on p, whatever p is: it needs no gradient. What is left
to do step by step are p and one multiply-add; the rest runs over all steps at once, and the
backward pass, like the forward one, is linear in the length.

    B batch, T time, D channels
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NOTHING_YET = -1e38
"""p before the first token; the number with which transformers starts."""

State = tuple[Tensor, Tensor, Tensor]
"""a, b and p after the last token, each (batch, channels), float32 or wider."""


def wkv4_scan(
    k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: State | None = None
) -> tuple[Tensor, State]:
    """Mix values along time; differentiable in everything but the state's p.

    Args:
        k, v: (batch, seq, channels), any float dtype.
        log_decay: (channels,), below 0: w.
        bonus: (channels,), what the own token's key gains: u.
        state: that of the tokens before; None: there are none.

    Returns:
        y: (batch, seq, channels) in v's dtype, and the state after the last token.
    """
    wide = torch.promote_types(torch.float32, torch.promote_types(k.dtype, log_decay.dtype))
    keys, values = (x.to(wide).transpose(0, 1) for x in (k, v))  # (T, B, D)
    w, u = log_decay.to(wide), bonus.to(wide)
    a, b, p_start = _start(keys[0]) if state is None else state
    p = _largest(keys.detach(), w.detach(), p_start)  # (T + 1, B, D), before and after each token
    before, after = p[:-1], p[1:]
    new = torch.exp(keys - after)
    sums = _Sums.apply(
        torch.exp(before + w - after), torch.stack([new * values, new], dim=1), torch.stack([a, b])
    )  # (T + 1, 2, B, D)
    boosted = keys + u
    m = torch.maximum(before, boosted.detach())
    old, own = torch.exp(before - m), torch.exp(boosted - m)
    y = (old * sums[:-1, 0] + own * values) / (old * sums[:-1, 1] + own)
    return y.transpose(0, 1).to(v.dtype), (sums[-1, 0], sums[-1, 1], p[-1])


def wkv4_scan_naive(
    k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: State | None = None
) -> tuple[Tensor, State]:
    """Do what `wkv4_scan` does, one line per equation; arguments and results as there."""
    wide = torch.promote_types(torch.float32, torch.promote_types(k.dtype, log_decay.dtype))
    a, b, p = _start(k[:, 0].to(wide)) if state is None else state
    outputs = []
    for k_t, v_t in zip(k.to(wide).unbind(1), v.to(wide).unbind(1), strict=True):
        m = torch.maximum(p, k_t + bonus)
        old, own = torch.exp(p - m), torch.exp(k_t + bonus - m)
        outputs.append((old * a + own * v_t) / (old * b + own))
        q = torch.maximum(p + log_decay, k_t)
        kept, new = torch.exp(p + log_decay - q), torch.exp(k_t - q)
        a, b, p = kept * a + new * v_t, kept * b + new, q
    return torch.stack(outputs, dim=1).to(v.dtype), (a, b, p)


class _Sums(torch.autograd.Function):
    """h_t = decay_t h_{t-1} + write_t for both sums at once.

    decay (T, B, D), write (T, 2, B, D) and start (2, B, D) give h_0..h_T, (T + 1, 2, B, D).
    Adjoint, in reverse time: g_{t-1} = gh_{t-1} + decay_t g_t.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(decay: Tensor, write: Tensor, start: Tensor) -> Tensor:
        states = [start]
        for decay_t, write_t in zip(decay.unbind(0), write.unbind(0), strict=True):
            states.append(torch.addcmul(write_t, decay_t, states[-1]))
        return torch.stack(states)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, states = ctx.saved_tensors
        back = [gradients[0][-1]]
        steps = list(zip(gradients[0][:-1].unbind(0), decay.unbind(0), strict=True))
        for outside, decay_t in reversed(steps):
            back.append(torch.addcmul(outside, decay_t, back[-1]))
        adjoints = torch.stack(back[::-1])  # (T + 1, 2, B, D), of h_0..h_T
        return (adjoints[1:] * states[:-1]).sum(1), adjoints[1:], adjoints[0]


def _start(like: Tensor) -> State:
    zero = torch.zeros_like(like)
    return zero, zero, torch.full_like(like, NOTHING_YET)


def _largest(keys: Tensor, w: Tensor, start: Tensor) -> Tensor:
    found = [start.detach()]
    for k_t in keys.unbind(0):
        found.append(torch.maximum(found[-1] + w, k_t))
    return torch.stack(found)
