"""RWKV-4's scan: the loop over time, transformers' own, hand-worked sums, gradients."""

import pytest
import torch
from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

from manticore.mixers.wkv4_scan import wkv4_scan, wkv4_scan_naive


def inputs(length, dtype=torch.float32, batch=2, channels=5, scale=1.0):
    generator = torch.Generator().manual_seed(length)
    k, v = (torch.randn(batch, length, channels, generator=generator) for _ in range(2))
    raw, u = (torch.randn(channels, generator=generator) for _ in range(2))
    return [t.to(dtype) for t in (scale * k, v, -torch.exp(raw), u)]


def test_two_tokens_give_the_mean_worked_by_hand():
    k, v, w, u = (torch.tensor(x, dtype=torch.float64) for x in ([1.0, -2], [3.0, 5], -0.5, 0.7))
    y, _ = wkv4_scan(k.view(1, 2, 1), v.view(1, 2, 1), w.view(1), u.view(1))
    own = torch.exp(u + k[1])
    second = (torch.exp(k[0]) * v[0] + own * v[1]) / (torch.exp(k[0]) + own)
    assert torch.allclose(y.flatten(), torch.stack([v[0], second]))


@pytest.mark.parametrize("length", [1, 63, 257])
@pytest.mark.parametrize("scale", [1.0, 60.0])  # e^60 to the tenth would overflow
def test_the_fast_form_equals_the_loop_over_time(length, scale):
    given = inputs(length, scale=scale)
    y, state = wkv4_scan(*given)
    wanted, wanted_state = wkv4_scan_naive(*given)
    assert (y - wanted).abs().max() < 1e-5
    for got, expected in zip(state, wanted_state, strict=True):
        assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_outputs_and_gradients_equal_those_of_transformers():
    k, v, w, u = inputs(40)
    decay = torch.log(-w)
    leaves = [t.detach().requires_grad_() for t in (decay, u, k, v)]
    stock, _ = rwkv_linear_attention_cpu(*leaves)
    ours, _ = wkv4_scan(leaves[2], leaves[3], -torch.exp(leaves[0]), leaves[1])
    assert (stock - ours).abs().max() < 1e-6
    weights = torch.randn(stock.shape, generator=torch.Generator().manual_seed(0))
    wanted = torch.autograd.grad((stock * weights).sum(), leaves)
    got = torch.autograd.grad((ours * weights).sum(), leaves)
    for mine, theirs in zip(got, wanted, strict=True):
        assert (mine - theirs).abs().max() < 1e-5 * theirs.abs().max().clamp(min=1)


def test_gradients_equal_finite_differences():
    given = [t.requires_grad_() for t in inputs(6, torch.float64, batch=1, channels=2)]
    assert torch.autograd.gradcheck(lambda *x: wkv4_scan(*x)[0], given)


def test_a_split_sequence_gives_the_same_numbers():
    k, v, w, u = inputs(20)
    whole, _ = wkv4_scan(k, v, w, u)
    first, state = wkv4_scan(k[:, :7], v[:, :7], w, u)
    second, _ = wkv4_scan(k[:, 7:], v[:, 7:], w, u, state)
    assert (torch.cat([first, second], dim=1) - whole).abs().max() < 1e-5


def test_stacked_trials_equal_single_ones():
    trials = [inputs(length, batch=1) for length in (9, 9)]
    trials[1][0] = trials[1][0] + 1
    stacked = [torch.stack(tensors) for tensors in zip(*trials, strict=True)]
    gradient = torch.func.grad(lambda *x: wkv4_scan(*x)[0].square().sum(), argnums=(0, 1, 2, 3))
    together = torch.func.vmap(gradient)(*stacked)
    for index, trial in enumerate(trials):
        for got, wanted in zip(together, gradient(*trial), strict=True):
            assert torch.allclose(got[index], wanted, atol=1e-5)
