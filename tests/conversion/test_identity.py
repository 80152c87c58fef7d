"""Attention to attention is the source itself, for every family: the blocks are read right."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from manticore.conversion.reading import neighbours_to_halves, read_block, read_source
from manticore.conversion.source_blocks import rotary_of
from manticore.conversion.transfer import transfer
from tests.conversion.models import NEIGHBOURS, SOURCES, maximal, tiny_source
from tests.models.tiny import VARIANTS, tiny, tiny_config, token_ids


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", [*SOURCES, *NEIGHBOURS])
@torch.no_grad()
def test_attention_to_attention_gives_the_sources_logits(family, variant):
    source = tiny_source(family, variant)
    model, plan = transfer(source, "attention", copy="all")
    ids = token_ids(source, 2, 33)
    expected = source(ids).logits
    assert expected.std() > 0.5  # large enough that 1e-5 is a sharp test
    assert maximal(model(ids).logits - expected) < 1e-5
    assert plan.share_inherited == 1.0
    assert not {"initialised", "dropped"} & set(plan.by_how())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", SOURCES)
@torch.no_grad()
def test_mamba2_beside_attention_starts_as_the_source(family, variant):
    source = tiny_source(family, variant)
    layer = {"mixer": "attention-mamba2", "mamba_head_dim": 8, "mamba_n_groups": 2}
    model, plan = transfer(source, layer, copy="all")
    ids = token_ids(source, 2, 33)
    expected = source(ids).logits
    assert maximal(model(ids).logits - expected) < 1e-5
    assert "dropped" not in plan.by_how()
    new = {row.target.rpartition(".mixer.")[2]: row.note for row in plan.rows if not row.source
           and row.how == "initialised"}  # fmt: skip
    assert all(name.startswith("mamba2.") for name in new)
    assert new["mamba2.output.weight"] == "zeros, so that attention starts alone"
    model.model.layers[0].mixer.mamba2.output.weight[0] = 0.1
    assert maximal(model(ids).logits - expected) > 1e-3  # and what stands beside it is there


def test_a_plan_tells_that_rotated_neighbours_become_halves():
    _, plan = transfer(tiny("gptj"), "attention", copy="all")
    notes = {row.note for row in plan.rows if row.target and ".mixer.q." in row.target}
    assert notes == {"rows reordered: rotated pairs from neighbours to halves"}


def test_reordered_rows_are_a_permutation_within_each_head():
    block = read_block(tiny_config("gptj"))
    rows = torch.arange(32.0)[:, None]
    moved = neighbours_to_halves(rows, block).flatten().tolist()
    assert moved[:8] == [0, 2, 1, 3, 4, 5, 6, 7]  # 4 of 8 channels are rotated
    assert sorted(moved) == list(range(32))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 16, "rope_theta": 500.0},
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
         "rope_theta": 10000.0},
    ],
    ids=lambda rope: rope["rope_type"],
)  # fmt: skip
@torch.no_grad()
def test_scaled_rotary_positions_carry_over(rope):
    source = tiny("llama", rope_parameters=rope)
    model, _ = transfer(source, "attention", copy="all")
    ids = token_ids(source, 1, 60)
    assert maximal(model(ids).logits - source(ids).logits) < 1e-5


@torch.no_grad()
def test_a_share_of_channels_that_the_family_does_not_heed_is_not_heeded():
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    source = tiny("llama", rope_parameters=rope)
    model, _ = transfer(source, "attention", copy="all")
    ids = token_ids(source, 1, 60)
    assert maximal(model(ids).logits - source(ids).logits) < 1e-5


def test_angles_that_depend_on_the_length_are_refused():
    config = tiny_config("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0,
                                                   "rope_theta": 10000.0})  # fmt: skip
    with pytest.raises(ValueError, match=r"depend on the length.*default, linear, llama3, yarn"):
        rotary_of(config, 8)


def test_a_family_without_a_row_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"'mamba' cannot be converted.*Known: arcee.*gpt2, gpt_neox"
    ):
        transfer(tiny("mamba"), "retention")


def test_tensors_that_the_family_does_not_know_are_refused():
    source = tiny("llama")
    source.model.layers[0].self_attn.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"2 tensors.*layers\.0\.self_attn\.extra"):
        read_source(source)


@torch.no_grad()
def test_a_bfloat16_source_gives_a_bfloat16_model():
    source = tiny("llama").to(torch.bfloat16)
    model, _ = transfer(source, ["retention", "attention", "deltanet", "mamba"])
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    logits = model(token_ids(source, 2, 17)).logits
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


def test_a_saved_source_is_read_from_its_folder(tmp_path):
    tiny("qwen3").save_pretrained(tmp_path)
    by_path, _ = transfer(str(tmp_path), "attention", copy="all")
    ids = token_ids(by_path, 1, 9)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert maximal(by_path(ids).logits - stock(ids).logits) < 1e-5
