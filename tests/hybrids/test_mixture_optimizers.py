"""Exponentiated gradient follows its formula and never leaves the simplex."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manticore.hybrids.mixture_optimizers import LARGEST_MOVE, ExponentiatedGradient, clip_mixture


def log_weights(rows: list) -> nn.Parameter:
    return nn.Parameter(torch.tensor(rows).log())


def gradient_of(parameter: Tensor, slopes: Tensor) -> Tensor:
    """Gradient with respect to the log weights of a loss with these slopes in the weights."""
    weights = parameter.detach().softmax(dim=-1)
    return weights * (slopes - (weights * slopes).sum(dim=-1, keepdim=True))


def test_a_step_is_the_formula():
    """Against a <- a exp(-lr g) / sum, evaluated in NumPy from the slopes in the weights."""
    rows = [[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]]
    slopes = torch.tensor([[1.0, -0.5, 0.2], [0.0, 3.0, -1.0]])
    parameter = log_weights(rows)
    parameter.grad = gradient_of(parameter, slopes)
    ExponentiatedGradient([parameter], lr=0.3).step()
    expected = np.array(rows) * np.exp(-0.3 * slopes.numpy())
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(parameter.detach().softmax(dim=-1).numpy(), expected, atol=1e-6)


def test_rows_stay_on_the_simplex_for_a_thousand_rough_steps():
    torch_generator = torch.Generator().manual_seed(0)
    parameter = log_weights([[0.25, 0.25, 0.25, 0.25], [0.5, 0.0, 0.3, 0.2]])
    untouched = log_weights([0.3, 0.7])
    optimizer = ExponentiatedGradient([parameter, untouched], lr=0.5)
    for step in range(1000):
        slopes = torch.randn(2, 4, generator=torch_generator)
        if step % 7 == 0:
            slopes *= 1e6
        parameter.grad = gradient_of(parameter, slopes)
        if step % 11 == 0:
            parameter.grad[0, step % 4] = torch.nan
        if step % 13 == 0:
            parameter.grad[1, 2] = torch.inf
        if step % 17 == 0:
            parameter.grad = None
        optimizer.step()
        weights = parameter.detach().double().exp()
        assert (weights.sum(dim=-1) - 1).abs().max() <= 1e-6
        assert weights.min() >= 0
        assert weights[1, 1] == 0, "an exact zero stays"
        assert (weights[0] > 0).all(), "what is alive stays alive"
        assert not parameter.isnan().any()
    torch.testing.assert_close(untouched.detach().exp(), torch.tensor([0.3, 0.7]))


def test_no_weight_falls_below_the_floor_and_it_can_come_back():
    parameter = log_weights([0.5, 0.5])
    optimizer = ExponentiatedGradient([parameter], lr=1.0, floor=1e-3)
    for slopes, expected in (([5.0, 0.0], [0.001, 0.999]), ([0.0, 5.0], [0.999, 0.001])):
        for _ in range(50):
            parameter.grad = gradient_of(parameter, torch.tensor(slopes))
            optimizer.step()
        assert parameter.detach().exp().tolist() == pytest.approx(expected, abs=2e-6)


def test_one_step_changes_no_weight_by_more_than_its_bound():
    parameter = log_weights([0.5, 0.5])
    parameter.grad = torch.tensor([1e30, -1e30])
    ExponentiatedGradient([parameter], lr=1.0, floor=0.0).step()
    ratio = float((parameter[1] - parameter[0]).detach())
    assert ratio == pytest.approx(2 * LARGEST_MOVE, rel=1e-5)


def test_a_common_slope_of_a_row_moves_nothing():
    parameter = log_weights([0.2, 0.8])
    parameter.grad = gradient_of(parameter, torch.tensor([4.0, 4.0]))
    ExponentiatedGradient([parameter], lr=1.0).step()
    torch.testing.assert_close(parameter.detach().exp(), torch.tensor([0.2, 0.8]))


def test_clipping_scales_all_rows_together_and_returns_the_norm():
    one, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    one.grad, other.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_mixture([one, other], 1.0) == pytest.approx(5.0)
    torch.testing.assert_close(one.grad, torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(other.grad, torch.tensor([0.8]))
