"""Hyena and its relatives: direct sums in float64, mad-lab's sizes, routing, bounds."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve

from manticore.mixers.long_convolution import (
    fast_length,
    long_convolution,
    long_convolution_naive,
)
from manticore.mixers.multi_head_hyena import (
    head_convolution,
    head_convolution_fourier,
    head_convolution_naive,
)
from manticore.mixers.table import mixer_spec
from manticore.seeds import torch_generator
from tests.mixers.small import small_mixer, tokens


def normal(*shape, seed=0):
    generator = torch_generator(seed, "hyena")
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seq_len", [1, 2, 63, 257])
def test_the_transform_equals_the_sum_and_scipy(seq_len):
    u, filters = normal(2, seq_len, 3), normal(3, seq_len + 5, seed=1)
    found = long_convolution(u, filters)
    torch.testing.assert_close(found, long_convolution_naive(u, filters))
    truth = fftconvolve(u.numpy(), filters.t().numpy()[None], axes=1)[:, :seq_len]
    np.testing.assert_allclose(found.numpy(), truth, atol=1e-10)
    torch.testing.assert_close(long_convolution(u, filters, 1), found[:, -1:])


@pytest.mark.parametrize("num_outputs", [None, 1, 3])
def test_gradients_of_the_transform(num_outputs):
    u, filters = normal(2, 5, 2).requires_grad_(), normal(2, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: long_convolution(*x, num_outputs), (u, filters))


def test_the_last_positions_alone_are_those_of_the_whole():
    u, filters = normal(2, 20, 3), normal(3, 20, seed=1)
    whole = long_convolution(u, filters)
    for count in (1, 2, 19, 20):
        torch.testing.assert_close(long_convolution(u, filters, count), whole[:, 20 - count :])


def test_a_second_derivative_is_refused_and_names_the_way_out():
    u, filters = normal(1, 5, 2).requires_grad_(), normal(2, 5, seed=1)
    y = long_convolution(u, filters)
    (gradient,) = torch.autograd.grad(y.square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="long_convolution_naive"):
        gradient.sum().backward()


def test_fast_lengths_are_enough_and_have_small_factors():
    for size in range(1, 600):
        found = fast_length(size)
        odd = found // (found & -found)
        assert size <= found < 1.34 * size + 1
        assert odd in (1, 3, 5)


@pytest.mark.parametrize(("seq_len", "time"), [(9, 9), (1, 30), (40, 64)])
def test_both_forms_of_the_heads_equal_the_sum(seq_len, time):
    q, taps = normal(2, 3, seq_len, 4), normal(3, time, seed=3)
    k, v = normal(2, 3, time, 4, seed=1), normal(2, 3, time, 4, seed=2)
    expected = head_convolution_naive(q, k, v, taps)
    torch.testing.assert_close(head_convolution(q, k, v, taps), expected)
    torch.testing.assert_close(head_convolution_fourier(q, k, v, taps), expected)


def numpy_of(tensor):
    return tensor.detach().double().numpy()


def short_filtered(mixer, x):
    """Input map, repetition and short filter, written out: (T, 3 C)."""
    wide = numpy_of(x) @ numpy_of(mixer.input.weight).T + numpy_of(mixer.input_bias)
    wide = np.repeat(wide, mixer.spec.groups, axis=1)
    taps, out = numpy_of(mixer.conv.weight), np.zeros_like(wide)
    for t in range(len(wide)):
        for j in range(taps.shape[1]):
            source = t - (taps.shape[1] - 1) + j
            out[t] += taps[:, j] * wide[source] if source >= 0 else 0
    return out + numpy_of(mixer.conv_bias)


def test_hyena_equals_its_equations_in_float64():
    mixer = small_mixer("hyena")
    x = tokens(1, 12, mixer.spec.d_model)
    x0, x1, v = np.split(short_filtered(mixer, x[0]), 3, axis=1)
    u, taps = x1 * v, numpy_of(mixer.filter(12))
    mixed = np.stack([sum(taps[:, t - s] * u[s] for s in range(t + 1)) for t in range(12)])
    y = x0 * (mixed + numpy_of(mixer.present) * u)
    expected = y @ numpy_of(mixer.output.weight).T + numpy_of(mixer.output_bias)
    np.testing.assert_allclose(numpy_of(mixer(x))[0], expected, atol=1e-5)


def test_multi_head_hyena_equals_its_equations_in_float64():
    mixer = small_mixer("mh-hyena")
    heads, size, steps = mixer.spec.heads, mixer.spec.head_size, 11
    x = tokens(1, steps, mixer.spec.d_model)
    q, k, v = (
        part.reshape(steps, heads, size)
        for part in np.split(short_filtered(mixer, x[0]), 3, axis=1)
    )
    taps, present = numpy_of(mixer.filter(steps)), numpy_of(mixer.present)
    y = np.zeros((steps, heads, size))
    for t in range(steps):
        for head in range(heads):
            state = present[head] * np.outer(k[t, head], v[t, head])
            for s in range(t + 1):
                state += taps[head, t - s] * np.outer(k[s, head], v[s, head])
            y[t, head] = state.T @ q[t, head]
    expected = y.reshape(steps, -1) @ numpy_of(mixer.output.weight).T
    found = numpy_of(mixer(x))[0]
    np.testing.assert_allclose(found, expected + numpy_of(mixer.output_bias), atol=1e-5)


def test_a_long_sequence_takes_the_transforms_and_gives_the_same(monkeypatch):
    mixer = small_mixer("mh-hyena")
    x = tokens(1, 40, mixer.spec.d_model)
    expected = mixer(x)
    monkeypatch.setattr("manticore.mixers.multi_head_hyena.DIRECT_UP_TO", 8)
    torch.testing.assert_close(mixer(x), expected, atol=1e-5, rtol=1e-5)
    # A piece behind a long past: transforms for many positions, products for a few.
    state, outputs = None, []
    for start, end in ((0, 20), (20, 36), (36, 37), (37, 40)):
        y, state = mixer.prefill(x[:, start:end], state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, atol=1e-5, rtol=1e-5)


def test_an_expert_is_read_by_as_much_as_the_router_says():
    mixer = small_mixer("hyena-experts")
    x = tokens(1, 6, mixer.spec.d_model)
    weights = mixer.expert_weights(x)
    assert ((weights > 0).sum(-1) == mixer.spec.top_k).all()
    channels = normal(1, 6, mixer.spec.channels).float()
    expected = sum(
        weights[..., e : e + 1] * channels[..., e :: mixer.spec.n_experts]
        for e in range(mixer.spec.n_experts)
    )
    expected = expected @ mixer.output.weight.T + mixer.output_bias
    torch.testing.assert_close(mixer._read(channels, x), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters", "state"),
    [("hyena", 124_348, 2_048), ("mh-hyena", 30_862, 4_096), ("hyena-experts", 57_464, 2_048)],
)
def test_sizes_of_mad_lab_to_the_digit(name, parameters, state):
    spec = mixer_spec(name, max_length=128, compat="mad-lab")
    assert spec.num_parameters() == parameters
    assert spec.mixing_state_size(128) == state
    assert mixer_spec(name).mixing_state_size(128) == 2_048  # mended: 16 heads of 8


def test_the_positions_have_one_period_and_the_originals_hardly_move():
    fixed = mixer_spec("hyena", max_length=100).build(torch_generator(0, "z"))
    angle = 2 * math.pi * fixed.filter.positions[:, 0]
    torch.testing.assert_close(fixed.filter.positions[:, 1], angle.cos())
    torch.testing.assert_close(fixed.filter.positions[:, 2], angle.sin())
    original = mixer_spec("hyena", max_length=100, compat="mad-lab").build(torch_generator(0, "z"))
    assert original.filter.positions.requires_grad
    assert original.filter.positions[:, 1].min() > 0.999
    assert original.filter.positions[:, 2].abs().max() < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", ["hyena", "mh-hyena", "hyena-experts"])
def test_more_tokens_than_the_filters_have_taps_are_refused(name):
    mixer = small_mixer(name, max_length=10)
    _, state = mixer.prefill(tokens(1, 9, mixer.spec.d_model))
    with pytest.raises(ValueError, match="11 tokens is longer than this mixer's max_length=10"):
        mixer.prefill(tokens(1, 2, mixer.spec.d_model), state)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("hyena", {"groups": 0}, "groups=0 must be at least 1"),
        ("hyena", {"compat": "x"}, "must be 'fixed' or 'mad-lab'"),
        ("mh-hyena", {"n_heads": 5}, "n_heads=5 does not divide d_model=128"),
        ("hyena-experts", {"n_experts": 7}, "does not divide the 128 channels"),
        ("hyena-experts", {"top_k": 0}, "top_k=0 must lie between"),
    ],
)
def test_settings_that_make_no_mixer_are_refused(name, settings, says):
    with pytest.raises(ValueError, match=says):
        mixer_spec(name, **settings)
