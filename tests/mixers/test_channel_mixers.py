"""MLP, SwiGLU and the mixture of MLPs against plain sums."""

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from manticore.mixers.table import mixer_spec
from manticore.mixers.top_k_routing import top_k_weights
from manticore.seeds import torch_generator
from tests.mixers.small import small_mixer, tokens


@torch.no_grad()
def test_swiglu_equals_the_mlp_of_llama():
    ours = small_mixer("swiglu")
    config = LlamaConfig(
        hidden_size=ours.spec.d_model, intermediate_size=ours.spec.width, num_attention_heads=1
    )
    stock = LlamaMLP(config)
    for name, source in (("gate_proj", ours.gate), ("up_proj", ours.up), ("down_proj", ours.down)):
        getattr(stock, name).weight.copy_(source.weight)
    x = tokens(2, 5, ours.spec.d_model)
    torch.testing.assert_close(ours(x), stock(x), atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_the_mlp_is_two_maps_and_a_gelu():
    mixer = small_mixer("mlp")
    x = tokens(1, 4, mixer.spec.d_model)
    hidden = (x @ mixer.up.weight.T).double()
    gelu = 0.5 * hidden * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
    torch.testing.assert_close(mixer(x), (gelu.float() @ mixer.down.weight.T), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_mixture_is_the_sum_of_its_active_experts():
    mixer = small_mixer("moe-mlp")
    x, width = tokens(1, 7, mixer.spec.d_model), mixer.spec.expert_width
    weights = mixer.expert_weights(x)
    expected = torch.zeros_like(x)
    for expert in range(mixer.spec.n_experts):
        own = slice(expert * width, (expert + 1) * width)
        hidden = F.gelu(x @ mixer.gate.weight[own].T) * (x @ mixer.up.weight[own].T)
        expected += weights[..., expert : expert + 1] * (hidden @ mixer.down.weight[:, own].T)
    torch.testing.assert_close(mixer(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 8])
def test_exactly_k_experts_have_weight_and_it_sums_to_one(k):
    scores = torch.randn(50, 8, generator=torch_generator(0, "scores"))
    weights = top_k_weights(scores, k)
    assert ((weights > 0).sum(-1) == k).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(50))
    chosen = scores.topk(k, dim=-1)
    torch.testing.assert_close(
        weights.gather(1, chosen.indices), chosen.values.softmax(-1), atol=1e-6, rtol=1e-6
    )


def test_the_original_routing_leaves_most_weight_on_experts_it_calls_inactive():
    mixer = mixer_spec("moe-mlp", compat="mad-lab").build(torch_generator(0, "leak"))
    weights = mixer.expert_weights(tokens(8, 64, 128))
    active = weights.topk(2, dim=-1).values.sum(-1)
    # 59 % was measured in the original; the scores at the start depend on the draw.
    assert 0.5 < 1 - active.mean().item() < 0.7


def test_sizes():
    assert mixer_spec("mlp").num_parameters() == 131_072
    assert mixer_spec("swiglu").num_parameters() == 135_168
    assert mixer_spec("moe-mlp").num_parameters() == 50_176
    active = mixer_spec("moe-mlp", top_k=1).flops_per_token(1)
    assert mixer_spec("moe-mlp").flops_per_token(1) == active + 2 * 3 * 128 * 16


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("moe-mlp", {"top_k": 9}, "top_k=9 must lie between 1 and n_experts=8"),
        ("moe-mlp", {"compat": "old"}, "must be 'fixed' or 'mad-lab'"),
        ("mlp", {"expand": 0.0}, "must leave both widths >= 1"),
        ("swiglu", {"inner_width": 0}, "must be at least 1"),
    ],
)
def test_settings_that_make_no_mixer_are_refused(name, settings, says):
    with pytest.raises(ValueError, match=says):
        mixer_spec(name, **settings)
