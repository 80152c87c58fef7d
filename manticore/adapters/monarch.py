"""Rectangular Monarch matrices: two block-diagonal factors with a permutation between them.

MoRe (arXiv 2408.17383) writes the change of a weight as such a matrix. With one block it is a plain
low-rank product; with more blocks it is made of independent low-rank tiles.

    n, m      in_features, out_features         N     blocks
    b, c      block_in, block_out               R     block_rank

    first   (N, R, b)   reads the input in N contiguous blocks, R numbers from each
    second  (N, c, R)   writes the output in N blocks
    h[f],  f = k R + q  number q of input block k; it goes to output block f mod N, slot f div N

Output block l owns the rows l, N + l, 2 N + l, ... (`layout="strided"`, the paper's) or the
contiguous rows l c, l c + 1, ... (`layout="contiguous"`, GraLoRA's). The tile of output block l and
input block k is a product of as many rank-one terms as slots join them, about R / N: with R < N
some tiles are zero, and the matrix has rank at most N R.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

LAYOUTS = ("strided", "contiguous")

# Up to this inner width N R two plain matrix products beat two batched ones on a CPU, although
# they multiply N times as many numbers, most of them zero.
EXPAND_UP_TO = 32


@dataclass(frozen=True, kw_only=True)
class MonarchShape:
    """Sizes of a Monarch matrix that maps `in_features` numbers to `out_features`."""

    in_features: int
    """Columns of the matrix."""
    out_features: int
    """Rows of the matrix."""
    nblocks: int = 4
    """Blocks asked for; blocks that would hold padding alone are dropped (see `blocks`)."""
    block_rank: int = 4
    """Numbers that pass from each input block to the output."""
    layout: str = "strided"
    """Which rows an output block owns: `strided` or `contiguous`."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "layout" and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{field.name}={value!r} has to be a whole number, at least 1.")
        if self.layout not in LAYOUTS:
            raise ValueError(f"Unknown layout {self.layout!r}. Known: {', '.join(LAYOUTS)}.")
        smaller = min(self.in_features, self.out_features)
        if self.nblocks > smaller:
            raise ValueError(
                f"nblocks={self.nblocks} exceeds a dimension of a layer with {self.in_features} "
                f"inputs and {self.out_features} outputs. Choose at most {smaller}."
            )

    @property
    def block_in(self) -> int:
        """Width of an input block; the last one may be padded."""
        return -(-self.in_features // self.nblocks)

    @property
    def blocks(self) -> int:
        """Blocks that hold at least one input: 8 blocks of 20 inputs are 7 blocks of 3."""
        return -(-self.in_features // self.block_in)

    @property
    def block_out(self) -> int:
        """Height of an output block: `block_in` scaled by out_features / in_features, rounded up.

        Whole numbers throughout: rounding up a float ratio gives one row too many for some shapes.
        """
        return -(-self.block_in * self.out_features // self.in_features)

    @property
    def inner(self) -> int:
        """Numbers between the two factors, which bounds the rank of the matrix."""
        return self.blocks * self.block_rank

    @property
    def num_parameters(self) -> int:
        """Entries of both factors; block_rank * (in + out) when the blocks divide both."""
        return self.inner * (self.block_in + self.block_out)

    @property
    def first_shape(self) -> tuple[int, int, int]:
        """(blocks, block_rank, block_in)."""
        return self.blocks, self.block_rank, self.block_in

    @property
    def second_shape(self) -> tuple[int, int, int]:
        """(blocks, block_out, block_rank)."""
        return self.blocks, self.block_out, self.block_rank


def expand_first(first: Tensor, shape: MonarchShape) -> Tensor:
    """Write the first factor as one plain matrix, (inner, in_features)."""
    n, r, b = shape.first_shape
    blocks = torch.diag_embed(first.permute(1, 2, 0), dim1=0, dim2=2)  # (N, R, N, b)
    return _cut(blocks.reshape(n * r, n * b), 1, shape.in_features)


def expand_second(second: Tensor, shape: MonarchShape) -> Tensor:
    """Write permutation, second factor and output order as one matrix, (out_features, inner)."""
    n, c, r = shape.second_shape
    # Column f = slot * N + block; where the blocks stand among the rows is the layout.
    at = 1 if shape.layout == "strided" else 0
    tiles = torch.diag_embed(second.permute(1, 2, 0), dim1=at, dim2=3)  # (c, N, R, N), (N, c, R, N)
    return _cut(tiles.reshape(n * c, n * r), 0, shape.out_features)


def to_dense(first: Tensor, second: Tensor, shape: MonarchShape) -> Tensor:
    """Multiply out, (out_features, in_features). For merging and tests, never for training."""
    return expand_second(second, shape) @ expand_first(first, shape)


def apply_monarch(x: Tensor, first: Tensor, second: Tensor, shape: MonarchShape) -> Tensor:
    """Multiply vectors by the matrix without writing it out.

    Args:
        x: (..., in_features), of the factors' dtype.

    Returns:
        (..., out_features).
    """
    if shape.inner <= EXPAND_UP_TO:
        return F.linear(F.linear(x, expand_first(first, shape)), expand_second(second, shape))
    return apply_blockwise(x, first, second, shape)


def apply_blockwise(x: Tensor, first: Tensor, second: Tensor, shape: MonarchShape) -> Tensor:
    """Multiply block by block: 2 R (n + m) operations per vector, like a product of rank R."""
    n, r, b = shape.first_shape
    x = F.pad(x, (0, n * b - shape.in_features)) if shape.in_features < n * b else x
    blocks = x.reshape(-1, n, b).transpose(0, 1)  # (N, T, b) with T vectors
    h = torch.bmm(blocks, first.mT).transpose(0, 1).reshape(-1, r, n)  # (vector, slot, block)
    y = torch.bmm(h.permute(2, 0, 1), second.mT)  # (N, T, c)
    y = y.permute(1, 2, 0) if shape.layout == "strided" else y.transpose(0, 1)
    return _cut(y.reshape(*x.shape[:-1], n * shape.block_out), -1, shape.out_features)


def _cut(padded: Tensor, dim: int, size: int) -> Tensor:
    """Drop padding. Where there is none, a slice would copy the gradient for nothing."""
    return padded if padded.shape[dim] == size else padded.narrow(dim, 0, size)


def project(dense: Tensor, shape: MonarchShape) -> tuple[Tensor, Tensor]:
    """Find the Monarch matrix that is nearest to a dense one, in the sum of squared differences.

    Tiles share no parameters, so the best answer is the truncated singular value decomposition of
    every tile (the projection of the Monarch paper, arXiv 2204.00595). The square root of each
    singular value goes to either factor.

    Args:
        dense: (out_features, in_features).

    Returns:
        The factors `first` and `second`, in the dtype of `dense`.
    """
    tiles = _tiles(dense.detach(), shape)  # (out block, in block, c, b)
    u, s, vh = torch.linalg.svd(tiles, full_matrices=False)
    root = s.clamp_min(0).sqrt()
    left, right = u * root[..., None, :], root[..., :, None] * vh
    first = dense.new_zeros(shape.first_shape)
    second = dense.new_zeros(shape.second_shape)
    used: dict[tuple[int, int], int] = {}
    for block_in, number, block_out, slot in slots(shape):
        term = used.get((block_out, block_in), 0)
        used[block_out, block_in] = term + 1
        if term < s.shape[-1]:
            first[block_in, number] = right[block_out, block_in, term].to(first.dtype)
            second[block_out, :, slot] = left[block_out, block_in, :, term].to(second.dtype)
    return first, second


def slots(shape: MonarchShape) -> list[tuple[int, int, int, int]]:
    """List every path through the middle: (input block, its number, output block, its slot)."""
    n, r = shape.blocks, shape.block_rank
    return [(f // r, f % r, f % n, f // n) for f in range(n * r)]


def row_order(shape: MonarchShape) -> Tensor:
    """Give the permutation between the two layouts, as indices.

    With `c` of layout contiguous and `s` of layout strided, made of the same factors,
    `s == c[row_order(shape)]`: row i of the strided matrix is that row of the contiguous one.
    Exact when the blocks divide out_features; otherwise the layouts cut off different rows.
    """
    padded = torch.arange(shape.blocks * shape.block_out)
    return padded.view(shape.blocks, shape.block_out).T.reshape(-1)[: shape.out_features]


def _tiles(dense: Tensor, shape: MonarchShape) -> Tensor:
    """Cut a dense matrix into tiles, (out block, in block, block_out, block_in), in float32."""
    n, c, b = shape.blocks, shape.block_out, shape.block_in
    work = dense.to(torch.promote_types(dense.dtype, torch.float32))
    padded = F.pad(work, (0, n * b - shape.in_features, 0, n * c - shape.out_features))
    if shape.layout == "strided":
        return padded.view(c, n, n, b).permute(1, 2, 0, 3)
    return padded.view(n, c, n, b).permute(0, 2, 1, 3)
