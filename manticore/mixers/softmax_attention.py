"""Softmax attention over all keys or over a window of them (Vaswani et al., 2017, equation 1).

    y_t = sum_s softmax_s(q_t k_s / sqrt(K)) v_s            over the s that t may see

`softmax_attention` and `window_attention` use torch's fused kernels; `softmax_attention_naive`
writes the sum out, and is the test of both.

    B batch, H heads, T queries, L keys, K key size, W window, N blocks of W queries
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Attend; works under vmap and to the first derivative.

    Args:
        q: (batch, heads, ..., queries, key).
        k: (batch, key heads, ..., keys, key), where key heads divide heads: grouped queries
            (arXiv:2305.13245) share a key in order, as in Llama.
        v: (batch, key heads, ..., keys, value).
        visible: bool, broadcastable to (batch, heads, ..., queries, keys); None: all. Every
            query must see something.
        is_causal: query t sees keys up to t; needs visible=None and as many keys as queries.

    Returns:
        (batch, heads, ..., queries, value).
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    # torch has no rule to map its kernel over stacked models; ours hands it a larger batch.
    if torch._C._functorch.is_functorch_wrapped_tensor(q):
        mapped: Tensor = _Attention.apply(q, k, v, visible, is_causal)
        return mapped
    return F.scaled_dot_product_attention(q, k, v, visible, is_causal=is_causal)


def window_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attend to the last `window` keys, the own included, at a cost linear in the length.

    A block of W queries looks at the block of its own keys and the one before.

    Args:
        q: (batch, heads, seq, key).
        k, v: (batch, key heads, past + seq, key or value); the last key is the last query's.

    Returns:
        (batch, heads, seq, value).
    """
    seq_len, past = q.shape[2], k.shape[2] - q.shape[2]
    after = -seq_len % window
    before = window - past
    q = F.pad(q, (0, 0, 0, after)).unflatten(2, (-1, window))  # (B, H, N, W, K)
    k, v = (_pairs_of_blocks(F.pad(x, (0, 0, before, after)), window) for x in (k, v))
    step = torch.arange(window, device=q.device)[:, None]
    key = torch.arange(2 * window, device=q.device)
    band = (key > step) & (key <= step + window)  # (W, 2W)
    # The first block has no real keys before those of the past.
    block = torch.arange(q.shape[2], device=q.device)[:, None, None]
    y = softmax_attention(q, k, v, band & ((block > 0) | (key >= before)))
    return y.flatten(2, 3)[:, :, :seq_len]


def softmax_attention_naive(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Do what `softmax_attention` does, written out for (batch, heads, queries, key)."""
    groups = q.shape[1] // k.shape[1]
    heads = []
    for head in range(q.shape[1]):
        k_head, v_head = k[:, head // groups], v[:, head // groups]
        scores = q[:, head] @ k_head.mT / q.shape[-1] ** 0.5  # (B, T, L)
        seen = visible.expand(q.shape[0], q.shape[1], *scores.shape[1:])[:, head]
        heads.append(scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v_head)
    return torch.stack(heads, dim=1)


def _pairs_of_blocks(x: Tensor, window: int) -> Tensor:
    """(B, H, W + N W, K) to (B, H, N, 2W, K): each block after the one before it."""
    blocks = x.unflatten(2, (-1, window))
    return torch.cat([blocks[:, :, :-1], blocks[:, :, 1:]], dim=3)


class _Attention(torch.autograd.Function):
    """The fused kernel with rules for `torch.func`; the backward pass runs the forward again."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, causal: bool) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, visible, is_causal=causal)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.causal = inputs[4]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return (*_AttentionBackward.apply(grad, *ctx.saved_tensors, ctx.causal), None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        y = _Attention.apply(*_fold(info.batch_size, in_dims, inputs))
        return y.unflatten(0, (info.batch_size, -1)), 0


class _AttentionBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, causal: bool
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, visible, is_causal=causal)
            return torch.autograd.grad(y, (q, k, v), grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            "Attention under torch.func has no second derivative. Use softmax_attention_naive."
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, tuple[int, ...]]:
        gradients = _AttentionBackward.apply(*_fold(info.batch_size, in_dims, inputs))
        return tuple(x.unflatten(0, (info.batch_size, -1)) for x in gradients), (0, 0, 0)


def _fold(size: int, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> list[Any]:
    """Make the mapped dimension part of the batch; the mask comes last but one."""
    *tensors, visible, causal = inputs
    folded = [_into_batch(x, dim, size) for x, dim in zip(tensors, in_dims, strict=False)]
    of_one = tensors[0].dim() - (in_dims[0] is not None)
    mask_dim = in_dims[-2]
    # A mask without a batch dimension, or of one row, serves every model as it is.
    if visible is not None and (
        mask_dim is not None or (visible.dim() == of_one and visible.shape[0] > 1)
    ):
        visible = _into_batch(visible, mask_dim, size)
    return [*folded, visible, causal]


def _into_batch(x: Tensor, dim: int | None, size: int) -> Tensor:
    stacked = x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return stacked.flatten(0, 1)
