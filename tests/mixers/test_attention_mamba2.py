"""Attention and Mamba-2 side by side: the sum of the two mixers, and Falcon-H1's layer."""

import pytest
import torch
from transformers import FalconH1Config
from transformers.models.falcon_h1.modeling_falcon_h1 import (
    FalconH1DecoderLayer,
    FalconH1RotaryEmbedding,
)

from manticore.mixers.table import mixer_spec
from manticore.models.architectures import architecture_costs
from manticore.models.shape_types import mixer_cache_bytes
from manticore.models.stock_parts import renamed
from tests.mixers.small import small_mixer, small_spec, tokens

LLAMAS = {"window": None, "qkv_bias": False, "output_bias": False}


@torch.no_grad()
def test_outputs_are_the_sum_of_both_branches():
    ours = small_mixer("attention-mamba2")
    attention = ours.spec.attention.build()
    attention.load_state_dict(
        {k: v for k, v in ours.state_dict().items() if not k.startswith("mamba2.")}
    )
    x = tokens(2, 63, ours.spec.d_model)
    torch.testing.assert_close(ours(x), attention(x) + ours.mamba2(x), rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
def test_outputs_equal_those_of_falcon_h1s_layer(groups):
    ours = small_mixer("attention-mamba2", mamba_n_groups=groups, **LLAMAS)
    spec = ours.spec
    config = FalconH1Config(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
        intermediate_size=8, num_hidden_layers=1, attn_implementation="eager",
        mamba_d_ssm=64, mamba_n_heads=spec.mamba2.n_heads, mamba_n_groups=groups,
        mamba_d_state=4, mamba_rms_norm=True, mamba_norm_before_gate=False,
    )  # fmt: skip
    layer = FalconH1DecoderLayer(config, layer_idx=0).eval()
    layer.mamba.register_buffer("mup_vector", torch.ones(1))
    weights = ours.state_dict()
    beside = {k.removeprefix("mamba2."): v for k, v in weights.items() if k.startswith("mamba2.")}
    layer.mamba.load_state_dict(renamed("mamba2", beside), strict=False)
    layer.self_attn.load_state_dict(
        renamed("attention", {k: v for k, v in weights.items() if not k.startswith("mamba2.")})
    )
    layer.feed_forward.down_proj.weight.zero_()  # what is left is the norm and both branches
    x = tokens(2, 21, 32)
    angles = FalconH1RotaryEmbedding(config)(x, torch.arange(21)[None])
    causal = torch.full((21, 21), -torch.inf).triu(1)[None, None]
    theirs = layer(x, position_embeddings=angles, attention_mask=causal)[0]
    normed = torch.nn.functional.rms_norm(x, (32,), eps=1e-5)
    torch.testing.assert_close(x + ours(normed), theirs, atol=1e-5, rtol=1e-5)  # orders of sums


def test_keys_are_counted_apart_from_the_states_beside_them():
    spec = small_spec("attention-mamba2", window=None)
    attention, mamba2 = spec.branches
    held = mixer_cache_bytes(spec, 100, torch.bfloat16)
    assert held.kv == 2 * attention.state_size(100)
    tail = mamba2.state_size(100) - mamba2.mixing_state_size(100)
    assert held.state == 4 * mamba2.mixing_state_size(100) + 2 * tail
    costs = architecture_costs(["attention-mamba2"], 128)
    assert costs.has_growing_state
    assert costs.fixed_mixing_state == mixer_spec("mamba2").mixing_state_size(128)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_heads": 3}, "n_heads=3 does not divide d_model=128"),
        ({"mamba_head_dim": 7}, r"Mamba-2 beside attention.*: head_dim=7 does not divide"),
        ({"mamba_states": 4}, "Did you mean 'mamba_d_state'"),
        ({"kernel": "cuda"}, "kernel='cuda'"),
    ],
)
def test_a_wrong_setting_is_refused_by_the_branch_that_has_it(settings, message):
    with pytest.raises(ValueError, match=message):
        mixer_spec("attention-mamba2", **settings)
