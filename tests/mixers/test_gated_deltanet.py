"""Gated DeltaNet against Qwen3-Next's layer in transformers, with the same weights."""

import inspect

import pytest
import torch

from manticore.mixers.gated_deltanet import GatedDeltaNetSpec
from manticore.mixers.table import mixer_spec
from manticore.seeds import torch_generator
from tests.mixers.small import tokens

D_MODEL, HEADS, KEY, VALUE = 24, 3, 4, 8


@pytest.fixture
def qwen(monkeypatch):
    module = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    # With flash-linear-attention installed these would call that, which needs a GPU.
    for name in ("torch_chunk_gated_delta_rule", "causal_conv1d_fn"):
        monkeypatch.setattr(module, name, inspect.unwrap(getattr(module, name)))
    return module


def ours_and_theirs(qwen):
    config = qwen.Qwen3NextConfig(
        hidden_size=D_MODEL,
        linear_num_key_heads=HEADS,
        linear_num_value_heads=HEADS,
        linear_key_head_dim=KEY,
        linear_value_head_dim=VALUE,
        linear_conv_kernel_dim=4,
        rms_norm_eps=1e-5,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    theirs = qwen.Qwen3NextGatedDeltaNet(config, layer_idx=0)
    spec = GatedDeltaNetSpec(
        d_model=D_MODEL, n_heads=HEADS, expand_key=HEADS * KEY / D_MODEL, expand_value=1.0
    )
    ours = spec.build(torch_generator(0, "gated deltanet"))
    with torch.no_grad():
        ours.norm_weight.copy_(torch.rand(VALUE, generator=torch_generator(1)) + 0.5)
    copy_weights(ours, theirs)
    return ours, theirs


def heads_first(weight, size):
    return weight.detach().unflatten(0, (HEADS, size))


@torch.no_grad()
def copy_weights(ours, theirs):
    # Theirs holds q, k, v and the gate of one head side by side, then the next head's.
    sizes = {"q": KEY, "k": KEY, "v": VALUE, "gate": VALUE}
    parts = [heads_first(getattr(ours, name).weight, size) for name, size in sizes.items()]
    theirs.in_proj_qkvz.weight.copy_(torch.cat(parts, dim=1).flatten(0, 1))
    scalars = [heads_first(ours.beta.weight, 1), heads_first(ours.decay.weight, 1)]
    theirs.in_proj_ba.weight.copy_(torch.cat(scalars, dim=1).flatten(0, 1))
    theirs.conv1d.weight.copy_(ours.conv.weight.unsqueeze(1))
    theirs.A_log.copy_(ours.log_rate)
    theirs.dt_bias.copy_(ours.step_bias)
    theirs.norm.weight.copy_(ours.norm_weight)
    theirs.out_proj.weight.copy_(ours.output.weight)


@pytest.mark.parametrize("seq_len", [1, 63, 130])
def test_gated_deltanet_equals_transformers_in_outputs_and_gradients(qwen, seq_len):
    ours, theirs = ours_and_theirs(qwen)
    x = tokens(2, seq_len, D_MODEL).requires_grad_()
    weights = tokens(2, seq_len, D_MODEL, seed=1)
    pairs = [
        (ours.conv.weight, theirs.conv1d.weight),
        (ours.log_rate, theirs.A_log),
        (ours.step_bias, theirs.dt_bias),
        (ours.norm_weight, theirs.norm.weight),
        (ours.output.weight, theirs.out_proj.weight),
        (x, x),
    ]
    y, expected = ours(x), theirs(x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad((y * weights).sum(), [mine for mine, _ in pairs])
    wanted = torch.autograd.grad((expected * weights).sum(), [other for _, other in pairs])
    for one, other in zip(found, wanted, strict=True):
        one = one.reshape(other.shape)
        assert (one - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=1)


@torch.no_grad()
def test_left_padding_is_what_transformers_makes_of_it(qwen):
    ours, theirs = ours_and_theirs(qwen)
    x, mask = tokens(2, 12, D_MODEL), torch.arange(12).expand(2, 12) >= torch.tensor([[5], [0]])
    expected = theirs(x, attention_mask=mask.long())
    torch.testing.assert_close(ours(x, mask)[mask], expected[mask], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_memories_start_between_one_token_and_a_hundred_thousand():
    mixer = mixer_spec("gated-deltanet", n_heads=32).build(torch_generator(0))
    kept = mixer._log_decay(torch.zeros(1, 1, 128)).flatten()
    assert kept.max() < -1e-6
    assert kept.min() > -2
    assert kept.max() > -0.05  # some remember for long
    assert kept.min() < -0.1  # and some do not


def test_the_default_has_the_state_that_architectures_are_compared_at():
    spec = mixer_spec("gated-deltanet")
    assert spec.mixing_state_size(128) == 2048
    assert spec.num_parameters() == 5 * 128**2 + 128 * 16 + 3 * 128 * 4 + 16 + 16
