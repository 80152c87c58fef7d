"""Linear attention against the quadratic sum it stands for, and its feature maps."""

import numpy
import pytest
import torch

from manticore.mixers.feature_maps import MAPS, FeatureMap, num_features, num_map_parameters
from manticore.mixers.linear_attention import LinearAttentionSpec
from manticore.seeds import torch_generator
from tests.mixers.small import tokens

POSITIVE = [name for name in MAPS if name != "quadratic"]


def build(seed=0, **settings):
    mixer = LinearAttentionSpec(d_model=16, **settings).build(torch_generator(seed))
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch_generator(seed)))
    return mixer.double()


def features(name, weights, which, x):
    """The maps in plain numbers, for (..., K)."""
    if name == "elu":
        return numpy.where(x > 0, x + 1, numpy.exp(x))
    if name == "relu":
        return numpy.maximum(x, 0)
    if name == "quadratic":
        first, second = (
            x @ weights[f"{which}_map.{part}.weight"].T + weights[f"{which}_map.{part}.bias"]
            for part in ("first", "second")
        )
        return first * second
    if name == "hedgehog":
        mapped = x @ weights[f"{which}_map.weight"].T
        x = numpy.concatenate([mapped, -mapped], axis=-1)
    share = numpy.exp(x)
    return share / share.sum(-1, keepdims=True)


def quadratic_sum(mixer, x):
    """Every weight of every pair, as attention would write it."""
    spec, heads = mixer.spec, mixer.spec.n_heads
    weights = {name: value.detach().numpy() for name, value in mixer.named_parameters()}
    x = x.numpy()
    q, k, v = (
        numpy.stack(numpy.split(x @ weights[f"{part}.weight"].T, heads, axis=-1), axis=1)
        for part in ("q", "k", "v")
    )
    if spec.feature_map == "taylor":
        products = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5
        products = 1 + products + products**2 / 2
    else:
        q, k = (features(spec.feature_map, weights, *pair) for pair in (("q", q), ("k", k)))
        products = q @ k.swapaxes(-1, -2)
    products = numpy.tril(products)
    if spec.normalize == "sum":
        total = products.sum(-1, keepdims=True)
        # relu may give a position no weight at all, and the answer is then nothing.
        y = products @ v / numpy.where(total == 0, 1, total)
    else:
        y = products @ v
        y = y / numpy.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * weights["norm.weight"]
    return numpy.concatenate(list(y.swapaxes(0, 1)), axis=-1) @ weights["output.weight"].T


@torch.no_grad()
@pytest.mark.parametrize("n_heads", [1, 4])
@pytest.mark.parametrize(
    "settings",
    [{"feature_map": name} for name in POSITIVE]
    + [{"feature_map": "elu", "normalize": "rms"}]
    + [{"feature_map": "quadratic", "normalize": "rms"}],
)
def test_linear_attention_equals_the_sum_over_all_pairs(settings, n_heads):
    mixer = build(n_heads=n_heads, **settings)
    x = tokens(2, 37, 16).double()
    numpy.testing.assert_allclose(mixer(x), quadratic_sum(mixer, x), rtol=1e-9, atol=1e-9)
    numbers = sum(p.numel() for p in mixer.parameters())
    assert numbers == mixer.spec.num_parameters()
    _, state = mixer.prefill(x)
    assert state["memory"][0].numel() == mixer.state_size(37)


@torch.no_grad()
def test_compat_divides_by_a_sum_of_either_sign_as_the_original_does():
    mixer = build(n_heads=2, feature_map="quadratic", compat="mad-lab")
    x = tokens(1, 64, 16).double()
    expected = quadratic_sum(mixer, x)
    numpy.testing.assert_allclose(mixer(x), expected, rtol=1e-6, atol=1e-6)
    # The defect itself: far outside of the values that it should average.
    fixed = build(n_heads=2)
    assert mixer(x).abs().max() > 10 * fixed(x).abs().max()


@torch.no_grad()
@pytest.mark.parametrize("name", POSITIVE)
def test_a_positive_map_gives_an_average_of_the_values(name):
    mixer = build(n_heads=2, feature_map=name)
    mixer.output.weight.copy_(torch.eye(16))
    x = tokens(1, 50, 16).double() * 3
    values, y = mixer.v(x)[0], mixer(x)[0]
    for t in range(50):
        if name == "relu" and y[t].abs().max() == 0:
            continue
        assert (y[t] <= values[: t + 1].amax(0) + 1e-9).all()
        assert (y[t] >= values[: t + 1].amin(0) - 1e-9).all()


@torch.no_grad()
@pytest.mark.parametrize("name", MAPS)
def test_counts_of_features_and_weights_equal_the_built_map(name):
    feature_map = FeatureMap(name, 6, torch_generator(0))
    assert feature_map(tokens(2, 3, 6)).shape[-1] == num_features(name, 6)
    assert sum(p.numel() for p in feature_map.parameters()) == num_map_parameters(name, 6)


@torch.no_grad()
def test_long_sums_in_bfloat16_stay_near_float64():
    mixer = build(n_heads=2)
    x = tokens(1, 2000, 16)
    expected = mixer(x.double())
    found = mixer.bfloat16()(x.bfloat16()).double()
    # Weights and inputs are rounded by 1 in 256; a bfloat16 sum would stop growing at 256.
    assert (found - expected)[:, 1000:].abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_heads": 3}, "n_heads=3 does not divide d_model=16"),
        ({"feature_map": "cosine"}, "must be one of elu, relu"),
        ({"normalize": "none"}, "normalize='none' must be one of sum, rms"),
        ({"feature_map": "quadratic"}, "normalize='rms', or compat='mad-lab'"),
        ({"compat": "mad-lab"}, "Set these too"),
        ({"compat": "old"}, "must be one of fixed, mad-lab"),
        ({"kernel": "cuda"}, "kernel='cuda' must be one of torch, fla"),
    ],
)
def test_settings_that_contradict_each_other_say_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        LinearAttentionSpec(**{"d_model": 16, "n_heads": 2, **settings})


@torch.no_grad()
@pytest.mark.parametrize("name", MAPS)
def test_every_map_steps_as_it_mixes_a_sequence(name):
    mixer = build(n_heads=2, feature_map=name, normalize="rms")
    x, state, steps = tokens(2, 40, 16).double(), None, []
    for t in range(40):
        y, state = mixer.step(x[:, t], state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, dim=1), mixer(x))
