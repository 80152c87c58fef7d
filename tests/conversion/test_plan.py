"""The plan accounts for every tensor, and what it says is what happened."""

import dataclasses
import json

import pytest
import torch

from manticore.conversion.parts import part_of
from manticore.conversion.plan import TransferPlan
from manticore.conversion.reading import read_source
from manticore.conversion.transfer import transfer
from tests.conversion.models import LAYOUTS, SHAPED, SOURCES, tiny_source
from tests.models.tiny import tiny, token_ids


@pytest.mark.parametrize("copy", ["scratch", "no-output", "paper"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_of_both_sides_has_a_row(layout, copy):
    source = tiny("gpt_neox")
    model, plan = transfer(source, LAYOUTS[layout], copy=copy)
    targets = [row.target for row in plan.rows if row.target]
    assert sorted(targets) == sorted(model.state_dict())
    assert {row.source for row in plan.rows if row.source} == set(source.state_dict())
    assert plan.parameters == sum(p.numel() for p in model.parameters())
    json.dumps(plan.to_dict())


def test_the_papers_parts_are_bitwise_the_sources():
    source = tiny("gpt_neox")
    model, plan = transfer(source, "retention", copy="paper")
    here, there = model.state_dict(), source.state_dict()
    copied = [row for row in plan.rows if row.how == "copied"]
    assert {row.part for row in copied} == {"embeddings", "norms", "mlp", "output"}
    assert all(torch.equal(here[row.target], there[row.source]) for row in copied)
    wanted = [name for name in here if part_of(name) in ("embeddings", "norms", "mlp", "output")]
    assert sorted(row.target for row in copied) == sorted(wanted)


@pytest.mark.parametrize("mixer", SHAPED)
@pytest.mark.parametrize("family", SOURCES)
def test_queries_keys_and_values_carry_over_to_mixers_that_keep_the_heads(family, mixer):
    source = tiny(family)
    model, plan = transfer(source, mixer, copy="all")
    canonical = read_source(source).tensors
    for name, tensor in model.state_dict().items():
        if part_of(name) == "qkv":
            assert torch.equal(tensor, canonical[name].value), name
    assert not [row for row in plan.rows if row.how == "dropped"]


def test_copied_queries_that_are_no_longer_rotated_are_told():
    source, told = tiny("gpt_neox"), {}
    for rotary in (True, False):
        _, plan = transfer(source, {"mixer": "retention", "rotary": rotary}, copy="all")
        told[rotary] = {row.target for row in plan.rows if "without the source's" in row.note}
    layers = range(source.config.num_hidden_layers)
    names = {f"model.layers.{i}.mixer.q.{leaf}" for i in layers for leaf in ("weight", "bias")}
    assert told == {True: set(), False: names}


def test_another_number_of_heads_is_refused_with_both_counts():
    source = tiny("llama", num_attention_heads=16, num_key_value_heads=16)
    layer = {"mixer": "retention", "n_heads": 4, "n_kv_heads": 4, "head_dim": 8, "rotary": False}
    with pytest.raises(ValueError, match=r"Layer 0 \(retention\) has 4 heads.*source 16 of 2"):
        transfer(source, layer, copy="all")
    _, plan = transfer(source, layer, copy="paper")  # the paper's copy needs no heads
    notes = [row.note for row in plan.rows if row.target and ".output." in row.target]
    assert all("4 heads instead of 16" in note for note in notes)


def test_shared_heads_are_repeated_when_the_target_has_one_for_each_query():
    source = tiny("llama")  # 4 query heads, 2 key heads
    grouped, _ = transfer(source, "linear-attention", copy="all")
    layer = {"mixer": "linear-attention", "n_kv_heads": 4}
    separate, plan = transfer(source, layer, copy="all")
    assert {row.target for row in plan.rows if row.how == "repeated"} == {
        f"model.layers.{index}.mixer.{part}.weight" for index in range(4) for part in "kv"
    }
    ids = token_ids(source, 2, 21)
    with torch.no_grad():
        assert (grouped(ids).logits - separate(ids).logits).abs().max() < 1e-5


def test_heads_that_could_only_be_averaged_are_refused():
    with pytest.raises(ValueError, match=r"2 key heads, the source 4.*averaged"):
        transfer(tiny("gpt_neox"), {"mixer": "retention", "n_kv_heads": 2}, copy="all")


@pytest.mark.parametrize("mixer", ["mamba", "rwkv6"])
def test_a_mixer_without_such_projections_refuses_queries(mixer):
    with pytest.raises(ValueError, match=r"Layer 0 \(.*\) has no queries, keys and values"):
        transfer(tiny("llama"), LAYOUTS[mixer], copy="all")


def test_what_does_not_fit_is_dropped_with_the_reason():
    _, plan = transfer(tiny("gpt_neox"), "mamba", copy="paper")
    reasons = {row.source.split(".", 3)[3]: row.note for row in plan.rows if row.how == "dropped"}
    assert reasons["attention.dense.weight"] == "the target's has another shape, (32, 64)"
    assert reasons["attention.dense.bias"] == "the mixer has no such tensor"
    assert reasons["attention.query_key_value.weight"] == "the mixer has no such tensor"


def test_kept_attention_layers_keep_everything():
    source = tiny("gpt_neox")
    model, plan = transfer(source, "retention", copy="paper", keep=[1])
    canonical, here = read_source(source).tensors, model.state_dict()
    kept = [name for name in here if name.startswith("model.layers.1.")]
    assert all(torch.equal(here[name], canonical[name].value) for name in kept)
    assert plan.layers == ("retention", "attention", "retention", "retention")


def test_scratch_inherits_nothing_and_seeds_fix_the_rest():
    first, plan = transfer(tiny("gpt_neox"), "retention", copy="scratch", seed=3)
    again, _ = transfer(tiny("gpt_neox", seed=1), "retention", copy="scratch", seed=3)
    other, _ = transfer(tiny("gpt_neox"), "retention", copy="scratch", seed=4)
    assert plan.inherited == 0
    weights = [m.state_dict()["model.layers.0.mlp.up.weight"] for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_missing_row_is_an_error():
    model, plan = transfer(tiny("llama"), "retention")
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    broken = dataclasses.replace(plan, rows=plan.rows[1:])
    with pytest.raises(RuntimeError, match=r"target model\.embed_tokens\.weight"):
        broken.check(shapes, [])
    with pytest.raises(RuntimeError, match="source lost"):
        plan.check(shapes, ["lost"])


def test_tied_tables_count_once():
    source = tiny_source("llama", 1)
    model, plan = transfer(source, "retention")
    assert source.config.tie_word_embeddings
    assert plan.by_how()["tied"]["tensors"] == 1
    assert plan.parameters == sum(p.numel() for p in model.parameters())


def test_layers_in_which_the_same_happens_share_a_line():
    _, plan = transfer(tiny("gpt_neox"), "retention", keep=[2])
    text = str(plan)
    assert "model.layers.0-1,3.mixer.q.weight" in text
    assert "gpt_neox.layers.2.attention.query_key_value.weight" in text
    assert len(text.splitlines()) < len(plan.rows)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("retentoin", "Did you mean 'retention'"),
        ("mlp", "Unknown mixer 'mlp'"),
        ({"mixer": "retention", "longest": 3}, "no setting 'longest'.*Did you mean"),
        ({"mixer": "retention", "longest_memory": 1}, "two numbers of tokens above 1"),
        ({"mixer": "mamba", "d_model": 3}, "d_model, which is the source's"),
        ({"mixer": "retention", "n_kv_heads": 3}, "n_kv_heads must divide n_heads"),
        ({"mixer": "retention", "head_dim": 1}, "2 channels, but a head has 1.*rotary: false"),
        ({"mixer": "mamba2", "head_dim": 7}, "head_dim=7 does not divide expand . d_model = 64"),
        ({"mixer": "mh-sliding-attention", "n_heads": 5}, "n_heads=5 does not divide d_model=32"),
        ({"mixer": "linear-attention", "feature_map": "exp"}, "must be one of hedgehog, elu"),
        (["retention"], "1 mixers, but the source has 4 layers"),
    ],
)
def test_bad_targets_are_refused_before_anything_is_built(target, message):
    with pytest.raises(ValueError, match=message):
        transfer(tiny("gpt_neox"), target)


def test_bad_parts_and_layers_are_refused():
    source = tiny("gpt_neox")
    with pytest.raises(ValueError, match="Known: scratch, no-output, paper, all"):
        transfer(source, "retention", copy="everything")
    with pytest.raises(ValueError, match="copy names 'heads'"):
        transfer(source, "retention", copy=["heads"])
    with pytest.raises(ValueError, match="keep names layer 4"):
        transfer(source, "retention", keep=[4])


@pytest.mark.parametrize(
    ("target", "advice"),
    [
        ("mamba2", "Choose 'mamba2-heads'"),
        ("mh-sliding-attention", "Choose 'sliding-attention'"),
        ({"mixer": "gated-deltanet", "projections": "own"}, "Leave out projections: own"),
        ("rwkv6", "keeps the projections: attention, .*, mamba2-heads"),
    ],
)
def test_where_queries_have_no_place_the_mixer_that_keeps_them_is_named(target, advice):
    with pytest.raises(ValueError, match=advice):
        transfer(tiny("gpt_neox", hidden_size=64), target, copy="all")


def test_the_plan_needs_no_numbers():
    from manticore.conversion.planning import make_plan
    from manticore.conversion.transfer import converted_config, empty_target

    source = tiny("qwen3")
    _, plan = transfer(source, "gated-deltanet", copy="all")
    read = read_source(source.to("meta"))
    dry, _ = make_plan(read, empty_target(converted_config(read, "gated-deltanet")), "all")
    assert isinstance(dry, TransferPlan)
    assert dry == plan


def test_norms_that_would_stand_elsewhere_are_not_copied():
    """OLMo-2 norms what its mixers return; a layer with norms in front inherits none of them."""
    mixer = {"mixer": "gated-deltanet", "projections": "own", "n_heads": 4}
    source = tiny("olmo2")
    target = [{**mixer, "topology": "sequential"}, mixer, "attention", "attention"]
    _, plan = transfer(source, target)
    how = {row.target: row.how for row in plan.rows if row.part == "norms" and row.target}
    kinds = [
        how[f"model.layers.{index}.{n}_norm.weight"] for index in (0, 1) for n in ("mixer", "mlp")
    ]
    assert kinds == ["initialised", "initialised", "copied", "copied"]
    notes = {row.source: row.note for row in plan.rows if row.how == "dropped"}
    assert "stands elsewhere" in notes["model.layers.0.post_attention_layernorm.weight"]


@pytest.mark.parametrize(
    ("family", "setting", "reason"),
    [
        ("llama", {"projections": "mine"}, "must be 'source'"),
        ("llama", {"topology": "none"}, "can be parallel, sequential, post-norm"),
        ("phi", {"topology": "sequential"}, "share a norm it stays parallel"),
    ],
)
def test_settings_of_a_layer_are_checked(family, setting, reason):
    with pytest.raises(ValueError, match=reason):
        transfer(tiny(family), {"mixer": "gated-deltanet", **setting})


@pytest.mark.parametrize("mixer", ["retention", "gated-linear-attention", "rwkv7"])
@torch.no_grad()
def test_output_gates_of_converted_layers_start_at_one(mixer):
    """Those without a bias, which a one could stand in, are listed with the recipes."""
    model, plan = transfer(tiny("llama"), LAYOUTS[mixer])
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    for layer in model.model.layers:
        if mixer == "rwkv7":
            gate = layer.mixer.gate(x, "sigmoid")
            columns = layer.mixer.gate.up.weight
            assert columns.std(1).min() > 0  # equal ones would all learn the same
        else:
            gate = torch.nn.functional.silu(layer.mixer.gate(x))
        torch.testing.assert_close(gate, torch.ones_like(gate))
    notes = {row.target.split("mixer.")[-1]: row.note for row in plan.rows if row.part == "mixer"}
    assert "1" in notes["gate.up.weight" if mixer == "rwkv7" else "gate.bias"]


@pytest.mark.parametrize("family", ["gpt_neox", "qwen3"])
def test_a_source_with_numbers_that_are_none_is_refused_by_name(family):
    source = tiny(family)
    name = list(source.state_dict())[9]
    with torch.no_grad():
        source.state_dict()[name].view(-1)[3] = float("inf")
    with pytest.raises(ValueError, match=rf"1 of the .* in the source's {name} are not finite"):
        transfer(source, "retention")


def test_the_length_that_a_source_was_made_for_travels():
    model, _ = transfer(tiny("llama", max_position_embeddings=77), "retention")
    assert model.config.max_position_embeddings == 77
    model(torch.arange(3, 33).repeat(1, 3))  # and limits nothing
