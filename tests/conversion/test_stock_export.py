"""Converted models leave as a class of transformers, or are told why none fits."""

import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from manticore.conversion.stock_layouts import as_stock_model
from manticore.conversion.stock_rotary import rope_parameters
from manticore.conversion.transfer import identity, transfer
from manticore.models.stock import NoStockClassError
from tests.conversion.models import (
    NEIGHBOURS,
    PLAIN_ROTARY,
    SOURCES,
    converted,
    maximal,
    tiny_source,
)
from tests.models.tiny import tiny, token_ids

WINDOW = {"mixer": "sliding-attention", "window": 9}
MAMBA2 = {"mixer": "mamba2", "head_dim": 8, "norm_eps": 1e-6}
ALL = [(family, variant) for family in SOURCES for variant in (0, 1, 2)]


@pytest.mark.parametrize(("family", "variant"), ALL)
@torch.no_grad()
def test_a_model_that_keeps_its_attention_leaves_as_its_source(family, variant):
    # YaRN's angles leave as our class.
    rotary = PLAIN_ROTARY if (family, variant) == ("qwen3", 2) else {}
    source = tiny_source(family, variant, **rotary)
    stock = as_stock_model(identity(source))
    if (family, variant) != ("mistral", 0):  # without a window Mistral is a Llama
        assert type(stock) is type(source)
    ids = token_ids(source, 2, 40)
    assert torch.equal(stock(ids).logits, source(ids).logits)  # the same code on the same weights


@pytest.mark.parametrize("family", NEIGHBOURS)
@torch.no_grad()
def test_rotated_neighbours_leave_as_the_halves_of_a_llama(family):
    source = tiny(family)
    stock = as_stock_model(identity(source))
    assert type(stock).__name__ == "LlamaForCausalLM"
    ids = token_ids(source, 2, 40)
    assert maximal(stock(ids).logits - source(ids).logits) < 1e-5  # rounding of float32


@pytest.mark.parametrize(
    ("family", "class_name"),
    [
        ("llama", "MinistralForCausalLM"),
        ("qwen2", "Qwen2ForCausalLM"),
        ("qwen3", "Qwen3ForCausalLM"),
        ("olmo2", "Olmo3ForCausalLM"),
    ],
)
@torch.no_grad()
def test_windows_in_some_layers_leave_as_the_class_that_has_them(family, class_name):
    source = tiny(family)
    target = ["attention"] + [WINDOW] * (source.config.num_hidden_layers - 1)
    model, _ = transfer(source, target, copy="all")
    stock = as_stock_model(model)
    assert type(stock).__name__ == class_name
    ids = token_ids(source, 2, 40)
    assert maximal(stock(ids).logits - source(ids).logits) > 0.01  # the windows matter
    assert maximal(stock(ids).logits - model(ids).logits) < 1e-5  # rounding of float32


@torch.no_grad()
def test_windows_in_every_layer_of_a_llama_leave_as_a_mistral():
    model, _ = transfer(tiny("llama"), WINDOW, copy="all")
    stock = as_stock_model(model)
    assert type(stock).__name__ == "MistralForCausalLM"
    ids = token_ids(model, 2, 40)
    assert maximal(stock(ids).logits - model(ids).logits) < 1e-5


def among_attention(**settings):
    """Mamba-2 around a layer of attention."""
    mixer = {**MAMBA2, **settings}
    return [mixer, "attention", mixer, mixer]


@torch.no_grad()
def test_mamba2_among_a_llamas_attention_leaves_as_a_granite_hybrid():
    model = converted(among_attention(), "llama")
    stock = as_stock_model(model)
    assert type(stock).__name__ == "GraniteMoeHybridForCausalLM"
    ids = token_ids(model, 2, 40)
    assert maximal(stock(ids).logits - model(ids).logits) < 1e-5


@pytest.mark.parametrize(
    ("family", "target", "reason"),
    [
        ("llama", "retention", "has the mixer retention on the source's projections"),
        ("llama", ["attention", "mamba", "attention", "attention"], "Jamba's is normed-mamba"),
        (
            "llama",
            ["attention", "gated-conv", MAMBA2, MAMBA2],
            "mixes attention and gated-conv and",
        ),
        ("llama", MAMBA2, "those with mamba2 need a layer of attention"),
        ("qwen3", "gated-deltanet", '"projections": "own"'),
        ("llama", "mamba2-heads", "Granite's and Bamba's is mamba2"),
        ("llama", {"mixer": "attention", "projections": "own"}, "attention on projections of its"),
        ("gpt_neox", WINDOW, "gpt_neox comes nearest, but windows: one size, everywhere"),
        ("qwen2", ["attention", WINDOW, {**WINDOW, "window": 5}, WINDOW], "of several sizes"),
        ("llama", {"mixer": "attention", "rotary": False}, "rotated channels: none here"),
        ("llama", ["attention", *[{"mixer": "attention", "rotary": False}] * 3], "in layer 1"),
        ("llama", among_attention(norm_eps=1e-5), "norm_eps 1e-05 beside 1e-06"),
    ],
)
def test_other_layouts_are_told_the_first_difference(family, target, reason):
    model, _ = transfer(tiny(family), target)
    with pytest.raises(NoStockClassError, match=reason):
        as_stock_model(model)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 500000.0},
        {"rope_type": "default", "rope_theta": 1234567.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ],
    ids=lambda rope: f"{rope['rope_type']} {rope['rope_theta']:g}",
)
def test_base_and_factor_are_found_from_the_angles(rope):
    source = tiny("llama", head_dim=64, rope_parameters=rope)
    found = rope_parameters(identity(source).config.block_spec)
    assert found == rope


def test_angles_of_an_unknown_rule_are_not_taken_for_another():
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
    assert "yarn" in ROPE_INIT_FUNCTIONS
    model = identity(tiny("llama", rope_parameters=yarn))
    with pytest.raises(NoStockClassError, match="rotary angles: of no rule"):
        as_stock_model(model)


def test_the_dtype_of_every_tensor_stays():
    model = identity(tiny("gpt_neox")).to(torch.bfloat16)
    assert {p.dtype for p in as_stock_model(model).parameters()} == {torch.bfloat16}


def test_the_stock_model_shares_no_memory_with_the_converted_one():
    model = identity(tiny("llama"))
    ours = {p.data_ptr() for p in model.parameters()}
    assert not ours & {p.data_ptr() for p in as_stock_model(model).parameters()}
