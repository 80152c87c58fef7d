"""What chunked scans with a matrix state share: cutting time up, and one affine map per chunk.

Where everything inside a chunk is written as a function of the state S at its start,

    y = Q S + Y,    S' = M S + N,

time remains in one loop of a product and a sum per chunk, and the outputs of all chunks are one
batched product.

    B batch, H heads, N chunks, C steps in a chunk, K key size, V value size
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def run_chunks(
    Q: Tensor, Y: Tensor, M: Tensor, N: Tensor, state: Tensor, seq_len: int
) -> tuple[Tensor, Tensor]:
    """Apply the maps of the chunks one after another.

    Args:
        Q: (batch, heads, chunks, steps, key); Y: (batch, heads, chunks, steps, value).
        M: (batch, heads, chunks, key, key); N: (batch, heads, chunks, key, value).
        state: (batch, heads, key, value) before the first chunk.
        seq_len: real steps; what fills the last chunk is dropped.

    Returns:
        y: (batch, heads, seq_len, value), and the state after the last chunk.
    """
    starts = []
    for m, n in zip(M.unbind(2), N.unbind(2), strict=True):
        starts.append(state)
        state = n + m @ state
    y = (Y + Q @ torch.stack(starts, dim=2)).flatten(2, 3)
    return (y if y.shape[2] == seq_len else y[:, :, :seq_len]), state


def cut(chunk: int, *tensors: Tensor) -> Iterator[Tensor]:
    """Fold time, (B, H, T, ...) to (B, H, N, C, ...), with zeros after the end to fill a chunk."""
    for tensor in tensors:
        missing = -tensor.shape[2] % chunk
        if missing:
            tensor = F.pad(tensor, (0, 0) * (tensor.dim() - 3) + (0, missing))
        yield tensor.unflatten(2, (-1, chunk))


def check_shapes(expected: dict[str, tuple[Tensor | None, tuple[int, ...]]], q: Tensor) -> None:
    """Refuse a wrong shape by name, before any work."""
    if q.dim() != 4 or q.shape[2] == 0:
        raise ValueError(f"q has shape {tuple(q.shape)}; it must be (batch, heads, seq >= 1, key).")
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; q {tuple(q.shape)} and v ask for {shape}."
            )
