"""The shifted multiply-adds against torch's grouped convolution."""

import pytest
import torch
import torch.nn.functional as F

from manticore.mixers.causal_conv import causal_conv


def conv_inputs(batch, seq_len, taps, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, taps - 1 + seq_len, 6), (6, taps), (6,))
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def grouped_convolution(padded, weight, bias):
    return F.conv1d(padded.mT, weight.unsqueeze(1), bias, groups=weight.shape[0]).mT


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize(("batch", "seq_len"), [(1, 1), (3, 63)])
def test_causal_conv_equals_conv1d_in_outputs_and_gradients(batch, seq_len, taps):
    inputs = conv_inputs(batch, seq_len, taps)
    found, expected = causal_conv(*inputs), grouped_convolution(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad(found, inputs, weights),
        torch.autograd.grad(expected, inputs, weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)  # sums of 189 terms


def test_gradients_equal_finite_differences_in_float64():
    inputs = conv_inputs(2, 5, 3, torch.float64)
    assert torch.autograd.gradcheck(causal_conv, inputs)
    assert torch.autograd.gradgradcheck(causal_conv, inputs)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, None)])
def test_vmap_equals_a_loop_in_gradients(in_dims):
    inputs = [t.detach() for t in conv_inputs(2, 7, 4)]
    stacked = [
        t if d is None else torch.stack([t, 2 * t, -t])
        for t, d in zip(inputs, in_dims, strict=True)
    ]
    gradient = torch.func.grad(lambda *args: causal_conv(*args).pow(2).sum(), (0, 1, 2))
    mapped = torch.func.vmap(gradient, in_dims)(*stacked)
    for i in range(3):
        one = [t if d is None else t[i] for t, d in zip(stacked, in_dims, strict=True)]
        for found, expected in zip(mapped, gradient(*one), strict=True):
            torch.testing.assert_close(found[i], expected, rtol=1e-5, atol=1e-4)
