"""Stacks of mixers that alternate with MLPs leave as the class that has such blocks."""

import pytest
import torch

from manticore.conversion.stock_stacks import stack_as_stock_model
from manticore.models.stock import NoStockClassError
from tests.models.test_stock_mixers import model_of

ATTENTION = {"mixer": "mh-attention", "n_heads": 4, "n_kv_heads": 2}
PLAIN = {**ATTENTION, "qkv_bias": False, "output_bias": False}
UNTURNED = {**PLAIN, "rotary_fraction": 0.0}
ALL_HEADS = {"mixer": "mh-attention", "n_heads": 4}
MAMBA2 = {"mixer": "mamba2", "d_state": 6, "head_dim": 8}
GROUPS = {**MAMBA2, "n_groups": 2}
BESIDE = {**PLAIN, "mixer": "attention-mamba2", "mamba_d_state": 6, "mamba_head_dim": 8}
BIASED = {"qkv_bias": True, "output_bias": True}
MAMBA = {"mixer": "normed-mamba", "norm_eps": 1e-5}
GATED = {"mixer": "swiglu", "inner_width": 24}
TIED = {"tie_word_embeddings": True}
LAYER_NORMS = {"norm": "layer"}
POSITIONS = {"norm": "layer", "positions": "learned", "max_position_embeddings": 64}
CASES = [
    ("LlamaForCausalLM", [PLAIN, PLAIN], GATED, {}),
    ("LlamaForCausalLM", [ATTENTION], "swiglu", TIED),
    ("MinistralForCausalLM", [{**PLAIN, "window": 9}, PLAIN], GATED, {}),
    ("GraniteMoeHybridForCausalLM", [MAMBA2, PLAIN, MAMBA2], GATED, {}),
    ("GraniteMoeHybridForCausalLM", [PLAIN, MAMBA2, MAMBA2], GATED, TIED),
    ("BambaForCausalLM", [PLAIN, GROUPS], GATED, {}),
    ("BambaForCausalLM", [MAMBA2, {**PLAIN, "rotary_fraction": 0.5}], GATED, TIED),
    ("BambaForCausalLM", [MAMBA2, MAMBA2, {**ATTENTION, "head_dim": 6}], "swiglu", {}),
    ("FalconH1ForCausalLM", [BESIDE, BESIDE], GATED, {}),
    ("FalconH1ForCausalLM", [{**BESIDE, **BIASED, "mamba_n_groups": 2}] * 2, "swiglu", TIED),
    ("FalconH1ForCausalLM", [{**BESIDE, "head_dim": 6, "n_kv_heads": 1}] * 3, GATED, {}),
    ("JambaForCausalLM", [MAMBA, UNTURNED, MAMBA, UNTURNED], GATED, {}),
    ("JambaForCausalLM", [MAMBA, MAMBA, UNTURNED], "swiglu", TIED),
    ("NemotronHForCausalLM", [MAMBA2, UNTURNED], "mlp", {}),
    ("ArceeForCausalLM", [PLAIN, PLAIN], "mlp", {}),
    ("Starcoder2ForCausalLM", [{**ATTENTION, **BIASED, "window": 9}] * 2, "mlp", LAYER_NORMS),
    ("GPTNeoXForCausalLM", [ALL_HEADS, ALL_HEADS], "mlp", LAYER_NORMS),
    ("GPT2LMHeadModel", [{**ALL_HEADS, "rotary_fraction": 0.0}] * 2, "mlp", POSITIONS),
]


def alternating(tokens, channel):
    return [layer for token in tokens for layer in (token, channel)]


@pytest.mark.parametrize(("name", "tokens", "channel", "settings"), CASES)
@torch.no_grad()
def test_an_alternating_stack_leaves_as_the_class_of_its_blocks(name, tokens, channel, settings):
    model = model_of(alternating(tokens, channel), **settings)
    stock = stack_as_stock_model(model)
    assert type(stock).__name__ == name
    ids = torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(1))
    ours, theirs = model(ids).logits, stock(ids).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)  # two orders of float32 sums
    mask = torch.ones_like(ids)
    ours, theirs = (
        m.generate(ids, attention_mask=mask, max_new_tokens=16, do_sample=False)
        for m in (model, stock)
    )
    assert ours.shape[1] == 56
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("layers", "settings", "reason"),
    [
        (alternating([PLAIN], "moe-mlp"), {}, "no class has the mixer moe-mlp of layer 1"),
        (alternating(["hyena", PLAIN], "mlp"), {}, "has the mixer hyena"),
        (alternating([MAMBA2], GATED), {}, "need a layer of attention"),
        (alternating([PLAIN], GATED), {"head_bias": True}, "bias of the head: yes here"),
        (alternating([PLAIN], GATED), {"positions": "sinusoidal"}, "adds sinusoidal positions"),
        (alternating([PLAIN, ATTENTION], GATED), {}, "attention of several settings"),
        (alternating([BESIDE, PLAIN], GATED), {}, "none mixes attention and attention-mamba2"),
        (alternating([{**BESIDE, "window": 9}], GATED), {}, "windows: one size, everywhere here"),
        ([PLAIN, GATED, PLAIN, "swiglu"], {}, "MLPs of several widths"),
        (alternating(["gated-deltanet", PLAIN], GATED), {}, "norm of queries and keys: none here"),
        ([PLAIN, MAMBA2, GATED], {}, "no class has the mixer swiglu of layer 2"),
    ],
)
def test_what_is_in_the_way_of_a_stack_is_named(layers, settings, reason):
    with pytest.raises(NoStockClassError, match=reason):
        stack_as_stock_model(model_of(layers, max_position_embeddings=64, **settings))
