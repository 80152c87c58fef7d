"""First time steps: their range, their spread, and the softplus that gives them back."""

import torch
import torch.nn.functional as F

from manticore.mixers.time_steps import FIRST_STEPS, first_step_bias, inverse_softplus
from manticore.seeds import torch_generator


def test_the_inverse_gives_back_what_softplus_took():
    y = torch.logspace(-12, 2, 200, dtype=torch.float64)
    # softplus of -27 is 1 + e^-27 under a logarithm, which keeps 4 of 16 digits.
    torch.testing.assert_close(F.softplus(inverse_softplus(y)), y, rtol=1e-3, atol=0)
    torch.testing.assert_close(F.softplus(inverse_softplus(y[60:])), y[60:], rtol=1e-8, atol=0)


def test_first_steps_are_log_uniform_over_the_published_range():
    steps = F.softplus(first_step_bias(4_000, torch_generator(0)))
    low, high = FIRST_STEPS
    # float32 rounds the bias; at a step of 1e-3 one bit of it is a part in a million.
    assert steps.min() > low * (1 - 1e-4)
    assert steps.max() < high * (1 + 1e-4)
    middle = (low * high) ** 0.5
    below = (steps < middle).double().mean().item()
    assert abs(below - 0.5) < 4 * 0.5 / 4_000**0.5  # four standard deviations of a fair coin
