"""A hybrid's configuration: errors that mend, default partitions, a way through JSON."""

import pytest
import torch
from transformers import AutoConfig, CLIPTextConfig

from manticore.hybrids.configuration_manticore import ManticoreConfig
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from manticore.hybrids.partition import even_partition
from manticore.models.supported import UnsupportedFamilyError
from tests.hybrids.pairs import build, ids_for, member, members
from tests.models.tiny import tiny_config

GOOD = [[[0, 2], [2, 5]], [[0, 2], [2, 4]]]  # depths 5 and 4


def with_second(*ranges):
    return {"num_blocks": 2, "partition": [GOOD[0], list(ranges)]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_blocks": 5}, r"components of \[5, 4\] layers. Choose 1 to 4, the depth"),
        ({"num_blocks": 0}, "whole number of at least 1"),
        ({"num_blocks": -2}, "whole number of at least 1"),
        ({"num_blocks": 1.5}, "whole number of at least 1"),
        (with_second([0, 2], [3, 4]), "skips a layer.*should start at layer 2"),
        (with_second([0, 2], [1, 4]), "repeats a layer.*should start at layer 2"),
        (with_second([1, 2], [2, 4]), "skips a layer.*should start at layer 0"),
        (with_second([0, 2], [2, 3]), "ends at layer 3, but the component has 4"),
        (with_second([0, 2], [2, 5]), "ends at layer 5, but the component has 4"),
        (with_second([0, 4], [4, 4]), "no layers in block 1"),
        (with_second([0, 4]), "has 1 ranges for num_blocks=2"),
        (with_second([0, 1], [1, 2], [2, 4]), "has 3 ranges for num_blocks=2"),
        ({"num_blocks": 2, "partition": GOOD[:1]}, "has 1 entries for 2 components"),
        ({"mixing": "stream"}, "Unknown mixing 'stream'. Known: streams, shared"),
        ({"loyalty": -0.5}, "loyalty=-0.5"),
        ({"loyalty": float("nan")}, "loyalty=nan"),
        ({"loyalty": "large"}, "loyalty='large'"),
        ({"loyalty": [1.0]}, "loyalty has 1 values for 1 blocks"),
        ({"loyalty": [1.0, 2.0, 3.0]}, "loyalty has 3 values for 1 blocks"),
        ({"loyalty": [1.0, -2.0]}, "loyalty=-2.0"),
        ({"host": 2}, "host=2: allowed are 0 to 1"),
        ({"host": -1}, "host=-1: allowed are 0 to 1"),
        ({"embeddings": "old"}, "Unknown embeddings 'old'. Known: own, new"),
        ({"projectors": "zero"}, "Unknown initialisation 'zero'"),
        ({"num_block": 2}, "no option 'num_block'. Did you mean 'num_blocks'"),
        ({"tokenizers": [None]}, "1 tokenizers for 2 components"),
    ],
)
def test_bad_options_say_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        ManticoreForCausalLM.from_components([member(1), member(0)], **options)


def test_no_components_and_unknown_families_are_refused():
    with pytest.raises(ValueError, match="components is empty"):
        ManticoreForCausalLM.from_components([])
    with pytest.raises(ValueError, match="components is a single one"):
        ManticoreForCausalLM.from_components("recipes/zoo/neox-prose")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedFamilyError, match="Known: "):
        ManticoreForCausalLM(ManticoreConfig([tiny_config("mamba"), CLIPTextConfig()]))


def test_the_model_type_of_a_component_must_be_known():
    with pytest.raises(ValueError, match="model_type 'mambo'"):
        ManticoreConfig([{"model_type": "mambo"}])


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 7, 12, 24, 48])
def test_default_blocks_follow_each_other_and_differ_by_one_layer(depth):
    for num_blocks in range(1, depth + 1):
        ranges = even_partition(depth, num_blocks)
        assert [first for first, _ in ranges] == [0, *(last for _, last in ranges[:-1])]
        assert ranges[-1][1] == depth
        sizes = {last - first for first, last in ranges}
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1


def test_configuration_survives_json_and_is_known_to_auto_config(tmp_path):
    config = ManticoreConfig(
        [tiny_config("gpt_neox"), tiny_config("mamba", 2)],
        num_blocks=3,
        loyalty=[0.5, "inf", 2, float("inf")],
        learn_loyalty=True,
        router=False,
        host=1,
        own_head_mixture=True,
    )
    config.save_pretrained(tmp_path)
    assert "Infinity" not in (tmp_path / "config.json").read_text()
    for again in (ManticoreConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert again.loyalty_values() == [0.5, float("inf"), 2.0, float("inf")]
        assert again.to_dict() | {"_name_or_path": ""} == config.to_dict()
        assert [type(c) for c in again.components] == [type(c) for c in config.components]
        assert again.hidden_size == 72
        assert again.num_hidden_layers == 9


def test_components_keep_the_attention_they_were_loaded_with():
    hybrid = build(members(3))
    assert [c.config._attn_implementation for c in hybrid.model.components] == [
        member(k).config._attn_implementation for k in range(3)
    ]
    assert "sdpa" in {c._attn_implementation for c in hybrid.config.components}


def test_one_component_can_be_given_another_attention(tmp_path):
    hybrid = build(num_blocks=2)
    hybrid.save_pretrained(tmp_path)
    kernels = {"component_0": "eager"}
    again = ManticoreForCausalLM.from_pretrained(tmp_path, attn_implementation=kernels)
    assert again.config.component_0._attn_implementation == "eager"
    hybrid.set_attn_implementation("eager")
    layers = hybrid.model.components[0].layers
    assert {layer.attention.config._attn_implementation for layer in layers} == {"eager"}
    with torch.no_grad():
        assert torch.allclose(again(ids_for()).logits, hybrid(ids_for()).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": ids_for(), "inputs_embeds": torch.zeros(2, 11, 72)}, "exactly one of"),
        ({"inputs_embeds": torch.zeros(2, 11, 40)}, r"side by side have 72 \(\[32, 40\]\)"),
        ({"input_ids": ids_for(), "attention_mask": torch.ones(2, 7)}, r"must be \(2, 11\)"),
        ({"input_ids": ids_for(), "attention_mask": torch.ones(1, 1, 11, 11)}, r"be \(2, 11\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        build()(**call)


def test_a_sequence_longer_than_a_position_table_is_refused_before_any_layer_runs():
    hybrid = build([member(2, max_position_embeddings=8), member(1)])
    calls = []
    for module in hybrid.modules():
        if not isinstance(module, ManticoreForCausalLM) and module is not hybrid.model:
            module.register_forward_pre_hook(lambda module, _: calls.append(module))
    with pytest.raises(ValueError, match="table of 8 positions"):
        hybrid(ids_for(1, 9))
    assert not calls
    with torch.no_grad():
        cache = hybrid(ids_for(1, 8)).past_key_values
        with pytest.raises(ValueError, match="table of 8 positions"):
            hybrid(ids_for(1, 1), past_key_values=cache)
    hybrid.set_mixture(torch.tensor([[0.0, 1.0]]))  # nobody reads the table now
    with torch.no_grad():
        assert hybrid(ids_for(1, 9)).logits.shape == (1, 9, 61)
