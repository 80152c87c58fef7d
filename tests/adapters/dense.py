"""The published formula of MoRe as a dense matrix, entry by entry: independent of the product code.

ΔW[s N + l, k b + j] = sum over q with (k R + q) mod N = l of
    second[l, s, (k R + q) div N] * first[k, q, j]
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor


def sizes(n: int, m: int, nblocks: int) -> tuple[int, int, int]:
    """Blocks that are left, inputs and outputs of a block."""
    block_in = math.ceil(Fraction(n, nblocks))
    return math.ceil(Fraction(n, block_in)), block_in, math.ceil(Fraction(block_in * m, n))


def dense_delta(first: Tensor, second: Tensor, n: int, m: int, layout: str = "strided") -> Tensor:
    """Sum the formula up, (m, n); gradients flow to both factors."""
    blocks, rank, block_in = first.shape
    block_out = second.shape[1]
    rows = []
    for row in range(m):
        s, block = divmod(row, blocks) if layout == "strided" else divmod(row, block_out)[::-1]
        tiles = []
        for k in range(blocks):
            tile = torch.zeros(block_in, dtype=first.dtype)
            for q in range(rank):
                if (k * rank + q) % blocks == block:
                    tile = tile + second[block, s, (k * rank + q) // blocks] * first[k, q]
            tiles.append(tile)
        rows.append(torch.cat(tiles)[:n])
    return torch.stack(rows)
