"""Rectangular Monarch matrices against their formula, entry by entry."""

from __future__ import annotations

import random

import pytest
import torch

from manticore.adapters import monarch
from manticore.adapters.monarch import MonarchShape, apply_blockwise, project, row_order, to_dense
from tests.adapters.dense import dense_delta, sizes

# (in, out): square, wide, tall, not divisible, and one where a block is dropped (20 in 8 blocks).
DIMENSIONS = [(16, 16), (24, 8), (8, 24), (15, 22), (20, 9)]
NBLOCKS = [1, 2, 3, 4, 7, 8]
RANKS = [1, 2, 3, 4, 8]


def shapes():
    for n, m in DIMENSIONS:
        for nblocks in NBLOCKS:
            for rank in RANKS:
                yield pytest.param((n, m, nblocks, rank), id=f"{n}x{m}-N{nblocks}-r{rank}")


def draw(shape: MonarchShape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(shape.num_parameters)
    return [
        torch.randn(size, generator=generator, dtype=dtype).requires_grad_()
        for size in (shape.first_shape, shape.second_shape)
    ]


@pytest.mark.parametrize("layout", monarch.LAYOUTS)
@pytest.mark.parametrize("case", list(shapes()))
def test_both_ways_of_applying_equal_the_formula_with_all_gradients(case, layout):
    n, m, nblocks, rank = case
    shape = MonarchShape(
        in_features=n, out_features=m, nblocks=nblocks, block_rank=rank, layout=layout
    )
    first, second = draw(shape)
    dense = dense_delta(first, second, n, m, layout)
    torch.testing.assert_close(to_dense(first, second, shape), dense)
    x = torch.randn(2, 3, n, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, m, dtype=torch.float64)
    wanted = torch.autograd.grad((x @ dense.T * weights).sum(), [x, first, second])
    for apply in (monarch.apply_monarch, apply_blockwise):
        y = apply(x, first, second, shape)
        torch.testing.assert_close(y, x @ dense.T)
        found = torch.autograd.grad((y * weights).sum(), [x, first, second])
        torch.testing.assert_close(found, wanted)


def test_sizes_and_parameters_follow_the_formula_for_random_shapes():
    draws = random.Random(0)
    for _ in range(200):
        n, m = draws.randint(1, 5000), draws.randint(1, 5000)
        nblocks, rank = draws.randint(1, min(n, m, 64)), draws.randint(1, 64)
        shape = MonarchShape(in_features=n, out_features=m, nblocks=nblocks, block_rank=rank)
        blocks, block_in, block_out = sizes(n, m, nblocks)
        assert (shape.blocks, shape.block_in, shape.block_out) == (blocks, block_in, block_out)
        assert shape.blocks * shape.block_in >= n
        assert shape.blocks * shape.block_out >= m
        assert shape.num_parameters == blocks * rank * (block_in + block_out)
        if n % nblocks == 0 and m % nblocks == 0:
            assert shape.num_parameters == rank * (n + m)


def test_block_heights_are_rounded_in_whole_numbers():
    # ceil(400 * (3584 / 1600)) in floating point is 897: a row too many.
    shape = MonarchShape(in_features=1600, out_features=3584, nblocks=4)
    assert shape.block_out == 896


def test_rank_and_share_of_zeros_are_those_of_the_theory():
    for rank in (1, 2, 3, 4, 8):
        shape = MonarchShape(in_features=64, out_features=64, nblocks=4, block_rank=rank)
        dense = to_dense(*draw(shape), shape).detach()
        assert torch.linalg.matrix_rank(dense) == min(64, 4 * rank)
        assert (dense != 0).double().mean() == min(rank, 4) / 4


def test_the_layouts_differ_by_the_documented_order_of_rows():
    for layout_n in (2, 4):
        shape = MonarchShape(in_features=12, out_features=16, nblocks=layout_n, block_rank=4)
        other = MonarchShape(
            in_features=12, out_features=16, nblocks=layout_n, block_rank=4, layout="contiguous"
        )
        factors = draw(shape)
        strided, contiguous = to_dense(*factors, shape), to_dense(*factors, other)
        assert torch.equal(strided, contiguous[row_order(shape)])
        assert not torch.equal(strided, contiguous)


@pytest.mark.parametrize("layout", monarch.LAYOUTS)
@pytest.mark.parametrize(
    ("n", "m", "nblocks", "rank"), [(16, 24, 4, 8), (15, 22, 4, 3), (9, 8, 3, 1)]
)
def test_projection_returns_a_monarch_matrix_unchanged(n, m, nblocks, rank, layout):
    shape = MonarchShape(
        in_features=n, out_features=m, nblocks=nblocks, block_rank=rank, layout=layout
    )
    dense = to_dense(*draw(shape), shape).detach()
    torch.testing.assert_close(to_dense(*project(dense, shape), shape), dense)


def test_projection_loses_the_small_singular_values_of_every_tile():
    shape = MonarchShape(in_features=16, out_features=24, nblocks=4, block_rank=8)
    target = torch.randn(24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = to_dense(*project(target, shape), shape)
    lost = sum(
        torch.linalg.svdvals(target[block::4, k : k + 4])[2:].square().sum()
        for block in range(4)
        for k in range(0, 16, 4)
    )
    torch.testing.assert_close((found - target).square().sum(), lost)


def test_no_small_step_from_the_projection_comes_closer():
    shape = MonarchShape(in_features=10, out_features=7, nblocks=3, block_rank=4)
    target = torch.randn(7, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    factors = [factor.requires_grad_() for factor in project(target, shape)]
    loss = (to_dense(*factors, shape) - target).square().sum()
    for gradient in torch.autograd.grad(loss, factors):
        assert gradient.abs().max() < 1e-10  # rounding of float64 sums


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nblocks": 9}, "nblocks=9 exceeds a dimension .* at most 8"),
        ({"block_rank": 0}, "block_rank=0 has to be a whole number, at least 1"),
        ({"nblocks": 2.0}, "nblocks=2.0 has to be a whole number"),
        ({"layout": "diagonal"}, "Unknown layout 'diagonal'. Known: strided, contiguous"),
    ],
)
def test_impossible_shapes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MonarchShape(in_features=12, out_features=8, **settings)
