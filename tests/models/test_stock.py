"""The door to transformers' own classes: every component leaves as what it was."""

import pytest
import torch
from transformers import PreTrainedConfig

from manticore.models.families import FAMILIES
from manticore.models.pretrained import split_causal_lm
from manticore.models.stock import NoStockClassError, component_model, is_ours, stock_model
from tests.models.tiny import FAMILY_NAMES, tiny, token_ids

STOCK_FAMILIES = [name for name in FAMILY_NAMES if name != "manticore_mixers" and name in FAMILIES]
NO_TOKENS = PreTrainedConfig(bos_token_id=None, eos_token_id=None, pad_token_id=None)


@pytest.mark.parametrize("family", STOCK_FAMILIES)
@torch.no_grad()
def test_a_component_leaves_as_the_model_it_came_from(family):
    model = tiny(family)
    stock = component_model(*split_causal_lm(model), NO_TOKENS)
    assert type(stock) is type(model)
    ids = token_ids(model, 2, 13)
    assert torch.equal(*(m(ids, use_cache=False).logits for m in (stock, model)))


@pytest.mark.parametrize("variant", [0, 1])
def test_a_tied_head_stays_tied_and_another_stays_apart(variant):
    model = tiny("llama", variant=variant)
    stock = component_model(*split_causal_lm(model), NO_TOKENS)
    is_tied = stock.get_output_embeddings().weight is stock.get_input_embeddings().weight
    assert is_tied == model.config.tie_word_embeddings == (variant == 1)


def test_the_hybrids_special_tokens_replace_the_components():
    model = tiny("llama")
    special = PreTrainedConfig(bos_token_id=7, eos_token_id=None, pad_token_id=9)
    config = component_model(*split_causal_lm(model), special).config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (7, 1, 9)


def test_our_own_class_is_no_stock_class():
    model = tiny("manticore_mixers")
    assert is_ours(model.config)
    with pytest.raises(NoStockClassError, match="Manticore's own"):
        component_model(*split_causal_lm(model), NO_TOKENS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model.norm.weight"), "lacks model.norm.weight"),
        (lambda state: state.update(extra=torch.ones(1)), "does not know, extra"),
        (lambda state: state.update({"model.norm.weight": torch.ones(3)}), r"is \(3,\) here"),
    ],
)
def test_tensors_must_be_exactly_those_of_the_class(change, message):
    model = tiny("llama")
    state = model.state_dict()
    change(state)
    with pytest.raises(NoStockClassError, match=message):
        stock_model(model.config, state)


def test_building_leaves_the_global_seed_alone():
    model = tiny("llama")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    stock_model(model.config, model.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
