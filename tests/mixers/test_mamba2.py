"""Mamba-2 against transformers' layer with the same weights, and against loops in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import Mamba2Config
from transformers.cache_utils import DynamicCache
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from manticore.mixers.table import mixer_spec
from manticore.seeds import torch_generator
from tests.mixers.small import small_mixer, tokens

# The same float32 sums in another order.
CLOSE = 1e-5
GROUPED = {"n_groups": 2, "d_state": 6, "head_dim": 8}


def stock_twin(ours):
    """transformers' layer with our weights, and which of ours each of its weights is."""
    spec = ours.spec
    config = Mamba2Config(
        hidden_size=spec.d_model,
        state_size=spec.d_state,
        conv_kernel=spec.conv_size,
        expand=spec.expand,
        num_heads=spec.n_heads,
        head_dim=spec.head_dim,
        n_groups=spec.n_groups,
        layer_norm_epsilon=spec.norm_eps,
        chunk_size=8,
        num_hidden_layers=1,
    )
    stock = Mamba2Mixer(config, layer_idx=0)
    pairs = {
        "in_proj.weight": ours.input.weight,
        "conv1d.weight": ours.conv.weight,
        "conv1d.bias": ours.conv_bias,
        "dt_bias": ours.step_bias,
        "A_log": ours.log_rate,
        "D": ours.skip,
        "norm.weight": ours.norm_weight,
        "out_proj.weight": ours.output.weight,
    }
    shapes = {name: value.shape for name, value in stock.state_dict().items()}
    stock.load_state_dict({k: v.detach().clone().view(shapes[k]) for k, v in pairs.items()})
    return stock, config, pairs


@pytest.mark.parametrize("settings", [{}, GROUPED], ids=["one group", "two groups"])
@pytest.mark.parametrize("seq_len", [1, 5, 63])
def test_outputs_and_gradients_equal_transformers(seq_len, settings):
    ours = small_mixer("mamba2", **settings)
    stock, _, pairs = stock_twin(ours)
    x = tokens(2, seq_len, ours.spec.d_model)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [ours(inputs[0]), stock(inputs[1])]
    torch.testing.assert_close(*outputs, atol=CLOSE, rtol=CLOSE)
    for output in outputs:
        (output * tokens(2, seq_len, ours.spec.d_model, seed=1)).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=1e-4, rtol=1e-4)
    theirs = dict(stock.named_parameters())
    assert theirs.keys() == pairs.keys()
    for name, parameter in pairs.items():
        expected = theirs[name].grad.view(parameter.shape)
        # Sums over up to 126 tokens: relative to the largest gradient of the weight.
        room = 1e-5 * expected.abs().max().clamp(min=1).item()
        torch.testing.assert_close(parameter.grad, expected, atol=room, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, GROUPED], ids=["one group", "two groups"])
def test_steps_behind_a_prompt_equal_transformers(settings):
    ours = small_mixer("mamba2", **settings)
    stock, config, _ = stock_twin(ours)
    x, cache, state = tokens(2, 22, ours.spec.d_model), DynamicCache(config=config), None
    for start, end in ((0, 19), (19, 20), (20, 21), (21, 22)):
        expected = stock(x[:, start:end], cache_params=cache)
        found, state = ours.prefill(x[:, start:end], state)
        torch.testing.assert_close(found, expected, atol=CLOSE, rtol=CLOSE)


def silu(x):
    return x / (1 + np.exp(-x))


def loops(mixer, x):
    """One row of tokens, one position and one head at a time."""
    spec = mixer.spec
    w = {name: value.detach().numpy() for name, value in mixer.named_parameters()}
    states, inner, into = spec.d_state, spec.inner_width, []
    memory = np.zeros((spec.n_heads, spec.head_dim, states))
    y = np.zeros_like(x)
    for t, token in enumerate(x):
        z, xBC, dt = np.split(w["input.weight"] @ token, [inner, inner + spec.conv_channels])
        into.append(xBC)
        mixed = w["conv_bias"].copy()
        for j in range(min(spec.conv_size, t + 1)):
            mixed += w["conv.weight"][:, -1 - j] * into[t - j]
        mixed, out = silu(mixed), np.zeros(inner)
        for h in range(spec.n_heads):
            own = slice(h * spec.head_dim, (h + 1) * spec.head_dim)
            g = h // (spec.n_heads // spec.n_groups)
            B = mixed[inner + g * states :][:states]
            C = mixed[inner + (spec.n_groups + g) * states :][:states]
            step = math.log1p(math.exp(dt[h] + w["step_bias"][h]))
            keep = math.exp(-math.exp(w["log_rate"][h]) * step)
            memory[h] = keep * memory[h] + np.outer(step * mixed[:inner][own], B)
            out[own] = memory[h] @ C + w["skip"][h] * mixed[:inner][own]
        out = (out * silu(z)).reshape(spec.n_groups, -1)
        out = out / np.sqrt((out**2).mean(axis=1, keepdims=True) + spec.norm_eps)
        y[t] = w["output.weight"] @ (out.reshape(-1) * w["norm_weight"])
    return y


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, GROUPED], ids=["one group", "two groups"])
def test_mamba2_equals_loops(settings):
    mixer = small_mixer("mamba2", **settings).double()
    x = tokens(1, 41, mixer.spec.d_model).double()
    np.testing.assert_allclose(mixer(x)[0], loops(mixer, x[0].numpy()), rtol=1e-9, atol=1e-9)


def test_sizes_follow_the_iso_state_rule_and_about_the_parameters_of_mamba():
    spec = mixer_spec("mamba2")
    assert spec.mixing_state_size(128) == mixer_spec("mamba").mixing_state_size(128) == 1_024
    assert spec.state_size(128) == 1_024 + 3 * (256 + 2 * 4)
    # W_in 128 x (256 + 264 + 16), W_out 256 x 128, conv 264 x 5, norm 256, three for each head.
    assert spec.num_parameters() == 68_608 + 32_768 + 1_320 + 256 + 48


def test_time_steps_and_rates_start_in_the_published_ranges():
    mixer = mixer_spec("mamba2", d_model=1024).build(torch_generator(0, "steps"))
    steps, rates = F.softplus(mixer.step_bias), mixer.log_rate.exp()
    assert 1e-3 - 1e-8 <= steps.min() < 2e-3
    assert 5e-2 < steps.max() <= 1e-1 + 1e-6
    assert 1 <= rates.min() < 2
    assert 15 < rates.max() <= 16


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"d_state": 0}, "d_state=0 must be at least 1"),
        ({"head_dim": 24}, "head_dim=24 does not divide expand \\* d_model = 256"),
        ({"n_groups": 3}, "n_groups=3 does not divide the 16 heads"),
        ({"norm_eps": 0.0}, "must be greater than 0"),
        ({"kernel": "cuda"}, "kernel='cuda' must be one of torch, fla"),
    ],
)
def test_settings_that_make_no_mixer_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        mixer_spec("mamba2", **settings)
