"""Mamba as a mixer: transformers' layer with the same weights, sizes, first time steps."""

import pytest
import torch
import torch.nn.functional as F
from transformers import JambaConfig, MambaConfig
from transformers.cache_utils import DynamicCache
from transformers.models.jamba.modeling_jamba import JambaMambaMixer
from transformers.models.mamba.modeling_mamba import MambaMixer

from manticore.mixers.table import mixer_spec
from manticore.seeds import torch_generator
from tests.mixers.small import small_mixer, tokens

# The same float32 sums in another order.
CLOSE = 1e-5


def stock_twin(ours):
    """transformers' layer with our weights."""
    spec = ours.spec
    config = MambaConfig(
        hidden_size=spec.d_model,
        state_size=spec.d_state,
        conv_kernel=spec.conv_size,
        expand=spec.expand,
        time_step_rank=spec.rank,
        num_hidden_layers=1,
    )
    stock = MambaMixer(config, layer_idx=0)
    pairs = {
        "in_proj.weight": ours.input.weight,
        "conv1d.weight": ours.conv.weight.unsqueeze(1),
        "conv1d.bias": ours.conv_bias,
        "x_proj.weight": ours.select.weight,
        "dt_proj.weight": ours.time_step.weight,
        "dt_proj.bias": ours.step_bias,
        "A_log": ours.log_rate,
        "D": ours.skip,
        "out_proj.weight": ours.output.weight,
    }
    stock.load_state_dict({name: value.detach().clone() for name, value in pairs.items()})
    return stock, config, dict(pairs)


@pytest.mark.parametrize("seq_len", [1, 5, 63])
def test_outputs_and_gradients_equal_transformers(seq_len):
    ours = small_mixer("mamba")
    stock, _, pairs = stock_twin(ours)
    x = tokens(2, seq_len, ours.spec.d_model)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [ours(inputs[0]), stock(inputs[1])]
    torch.testing.assert_close(*outputs, atol=CLOSE, rtol=CLOSE)
    for output in outputs:
        (output * tokens(2, seq_len, ours.spec.d_model, seed=1)).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=CLOSE, rtol=CLOSE)
    by_id = {id(parameter): parameter for parameter in ours.parameters()}
    for name, parameter in stock.named_parameters():
        if id(pairs[name]) in by_id:
            # Against each one's own largest: that of the time steps is 1e-4 of the output's.
            wrong = (pairs[name].grad - parameter.grad).abs().max()
            assert wrong <= CLOSE * parameter.grad.abs().max(), name


@torch.no_grad()
def test_steps_behind_a_prompt_equal_transformers():
    ours = small_mixer("mamba")
    stock, config, _ = stock_twin(ours)
    x, cache, state = tokens(2, 9, ours.spec.d_model), DynamicCache(config=config), None
    for start, end in ((0, 6), (6, 7), (7, 8), (8, 9)):
        expected = stock(x[:, start:end], cache_params=cache)
        found, state = ours.prefill(x[:, start:end], state)
        torch.testing.assert_close(found, expected, atol=CLOSE, rtol=CLOSE)


@torch.no_grad()
def test_with_a_normed_selection_it_is_jambas():
    ours = small_mixer("normed-mamba", norm_eps=1e-4)
    spec = ours.spec
    config = JambaConfig(
        hidden_size=spec.d_model, mamba_d_state=spec.d_state, mamba_d_conv=spec.conv_size,
        mamba_expand=spec.expand, mamba_dt_rank=spec.rank, rms_norm_eps=1e-4, num_hidden_layers=1,
    )  # fmt: skip
    stock = JambaMambaMixer(config, layer_idx=0)
    plain, _, pairs = stock_twin(ours)
    norms = {"dt": ours.step_norm, "b": ours.b_norm, "c": ours.c_norm}
    pairs |= {f"{name}_layernorm.weight": norm.weight for name, norm in norms.items()}
    stock.load_state_dict(pairs)
    x = tokens(2, 63, spec.d_model)
    torch.testing.assert_close(ours(x), stock(x), atol=CLOSE, rtol=CLOSE)
    assert not torch.allclose(ours(x), plain(x), atol=1e-3)  # the norms matter


def test_sizes_are_those_of_mad_lab():
    spec = mixer_spec("mamba")
    assert spec.num_parameters() == 107_264
    assert spec.mixing_state_size(128) == 1_024
    assert spec.state_size(128) == 1_024 + 256 * 3


def test_the_first_time_steps_lie_between_a_thousandth_and_a_tenth():
    mixer = mixer_spec("mamba").build(torch_generator(0, "steps"))
    steps = F.softplus(mixer.step_bias)
    assert 1e-3 <= steps.min() < 2e-3
    assert 5e-2 < steps.max() <= 1e-1 + 1e-6
    original = mixer_spec("mamba", compat="mad-lab").build(torch_generator(0, "steps"))
    assert (original.step_bias == 0).all()


@pytest.mark.parametrize("setting", ["expand", "d_state", "conv_size", "dt_rank"])
def test_a_size_below_one_is_refused(setting):
    with pytest.raises(ValueError, match="must be at least 1"):
        mixer_spec("mamba", **{setting: 0})
