"""The functions that stand in for transformers' in its recurrent layers, against those."""

import pytest
import torch

from manticore.models.fast_delta import chunk_delta_rule
from manticore.models.fast_functions import calling, convolve
from manticore.models.fast_mamba2 import chunk_scan, state_update
from manticore.seeds import torch_generator
from tests.models.in_float64 import theirs

# Another order of sums, relative to numbers of order 1, by dtype.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def normal(generator, dtype, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def assert_equal_with_gradients(ours, expected, inputs, **settings):
    """Both give two tensors for the inputs; compare them and the gradients of a functional."""
    tolerance = TOLERANCE[next(iter(inputs.values())).dtype]
    results = []
    for function in (ours, expected):
        outputs = function(**inputs, **settings)
        loss = sum((x * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum() for x in outputs)
        results.append((*outputs, *torch.autograd.grad(loss, list(inputs.values()))))
    for found, wanted in zip(*results, strict=True):
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max().clamp(min=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("seq_len", "heads", "groups", "chunk"), [(37, 4, 2, 16), (70, 6, 3, 64), (129, 8, 1, 32)]
)
def test_the_scan_of_mamba2_equals_transformers(seq_len, heads, groups, chunk, dtype, monkeypatch):
    draw = torch_generator(seq_len, "mamba2")
    inputs = {
        "hidden_states": normal(draw, dtype, 2, seq_len, heads, 5),
        "dt": normal(draw, dtype, 2, seq_len, heads),
        "A": (-normal(draw, dtype, heads).detach().exp()).requires_grad_(),
        "B": normal(draw, dtype, 2, seq_len, groups, 7),
        "C": normal(draw, dtype, 2, seq_len, groups, 7),
        "D": normal(draw, dtype, heads),
        "dt_bias": normal(draw, dtype, heads),
        "initial_states": normal(draw, dtype, 2, heads, 5, 7),
    }
    assert_equal_with_gradients(
        chunk_scan,
        theirs("mamba2", "mamba2_chunk_scan", dtype, monkeypatch),
        inputs,
        chunk_size=chunk,
        dt_softplus=True,
        dt_limit=(0.2, 1.5),
        return_final_states=True,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (6, 6), (3, 1)])
def test_the_step_of_mamba2_equals_transformers(heads, groups, dtype, monkeypatch):
    draw = torch_generator(heads, "step")
    inputs = {
        "hidden_states": normal(draw, dtype, 2, heads, 5),
        "dt": normal(draw, dtype, 2, heads, 1).expand(-1, -1, 5),
        "A": -normal(draw, dtype, heads, 1, 1).exp().expand(-1, 5, 7),
        "B": normal(draw, dtype, 2, groups, 7),
        "C": normal(draw, dtype, 2, groups, 7),
        "D": normal(draw, dtype, heads, 1).expand(-1, 5),
        "z": normal(draw, dtype, 2, heads, 5),
        "dt_bias": normal(draw, dtype, heads, 1).expand(-1, 5),
    }
    start = normal(draw, dtype, 2, heads, 5, 7).detach()
    expected = theirs("mamba2", "mamba2_selective_state_update", dtype, monkeypatch)
    results = []
    with torch.no_grad():
        for step in (state_update, expected):
            state = start.clone()
            results.append((step(state, **inputs, dt_softplus=True), state))
    for found, wanted in zip(*results, strict=True):
        assert (found - wanted).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("seq_len", "heads", "groups", "key"), [(37, 4, 2, 16), (70, 6, 3, 64), (129, 2, 2, 8)]
)
def test_the_delta_rule_equals_transformers(seq_len, heads, groups, key, dtype, monkeypatch):
    draw = torch_generator(seq_len, "delta")
    inputs = {
        "query": normal(draw, dtype, 2, seq_len, groups, key),
        "key": normal(draw, dtype, 2, seq_len, groups, key),
        "value": normal(draw, dtype, 2, seq_len, heads, 5),
        "g": (-normal(draw, dtype, 2, seq_len, heads).detach().exp()).requires_grad_(),
        "beta": normal(draw, dtype, 2, seq_len, heads).detach().sigmoid().requires_grad_(),
        "initial_state": normal(draw, dtype, 2, heads, key, 5),
    }
    assert_equal_with_gradients(
        chunk_delta_rule,
        theirs("qwen3_next", "torch_chunk_gated_delta_rule", dtype, monkeypatch),
        inputs,
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("taps", [2, 4])
def test_the_convolution_equals_transformers(taps, dtype, monkeypatch):
    draw = torch_generator(taps, "convolution")
    inputs = {
        "hidden_states": normal(draw, dtype, 2, 6, 9),
        "weight": normal(draw, dtype, 6, taps),
        "bias": normal(draw, dtype, 6),
    }
    plain = theirs("mamba2", "causal_conv1d_fn", dtype, monkeypatch)
    assert_equal_with_gradients(
        lambda **x: (convolve(**x, activation="silu"),),
        lambda **x: (plain(**x, activation="silu"),),
        inputs,
    )


def test_a_forward_without_the_named_function_is_left_as_it_is():
    forward = torch.nn.Linear.forward
    assert calling(forward, mamba2_chunk_scan=chunk_scan) is forward
