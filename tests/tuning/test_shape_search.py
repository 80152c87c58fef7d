"""The search over adapter shapes finds what was planted, and stays within its budget."""

from __future__ import annotations

import itertools

import pytest
import torch
import yaml
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from manticore import MoReConfig
from manticore.adapters.monarch import to_dense
from manticore.config.adapter_recipe import MethodConfig
from manticore.config.load import from_plain
from manticore.seeds import torch_generator
from manticore.tuning.methods import adapt, trainable_parameters
from manticore.tuning.one_shot import held, values_of, weight_changes
from manticore.tuning.search_findings import front_of, look_notes, notes, winner
from manticore.tuning.shapes import (
    NONE,
    ModuleKind,
    allocate,
    choices,
    module_kinds,
    parameters_of,
    settings_of,
    title_of,
    uniform,
)


def tiny_llama():
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=40, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


NBLOCKS, RANKS = (1, 2, 4, 8), (1, 2, 4, 8)


def kind(ending="q_proj", size=32, modules=2):
    names = tuple(f"layers.{i}.{ending}" for i in range(modules))
    return ModuleKind(ending=ending, modules=names, in_features=size, out_features=size)


def planted(kind, choice, seed=0):
    """A random Monarch matrix of a shape."""
    shape, generator = kind.shape(choice), torch_generator(seed, "planted")
    first = torch.randn(shape.first_shape, generator=generator)
    second = torch.randn(shape.second_shape, generator=generator)
    return to_dense(first, second, shape)


@pytest.mark.parametrize("choice", [(1, 4), (2, 2), (4, 4), (8, 2)])
def test_the_planted_shape_is_found_under_its_own_budget(choice):
    one = kind()
    changes = {name: planted(one, choice, i) for i, name in enumerate(one.modules)}
    values = values_of([one], changes, NBLOCKS, RANKS)
    budget = one.parameters(choice)
    assert allocate([one], values, budget) == {"q_proj": choice}


def test_a_plain_low_rank_change_is_given_one_block():
    one = kind()
    generator = torch_generator(0)
    low = torch.randn(32, 2, generator=generator) @ torch.randn(2, 32, generator=generator)
    values = values_of([one], dict.fromkeys(one.modules, low), NBLOCKS, RANKS)
    assert allocate([one], values, one.parameters((1, 2))) == {"q_proj": (1, 2)}
    # A budget beyond need changes nothing in what can be held.
    whole = len(one.modules) * float(low.square().sum())
    assert values["q_proj"][1, 2] == pytest.approx(whole, rel=1e-5)


def test_each_kind_gets_its_own_shape_and_one_that_does_not_matter_none():
    q, up, idle = kind("q_proj"), kind("up_proj"), kind("down_proj")
    changes = {name: planted(q, (4, 4)) for name in q.modules}
    changes |= {name: planted(up, (1, 2)) for name in up.modules}
    changes |= {name: torch.zeros(32, 32) for name in idle.modules}
    values = values_of([q, up, idle], changes, NBLOCKS, RANKS)
    budget = q.parameters((4, 4)) + up.parameters((1, 2))
    found = allocate([q, up, idle], values, budget)
    assert found == {"q_proj": (4, 4), "up_proj": (1, 2), "down_proj": NONE}
    settings, targets = settings_of([q, up, idle], found)
    assert targets == ("q_proj", "up_proj")
    assert settings == {
        "nblocks": 4, "block_rank": 4, "nblocks_pattern": {"up_proj": 1},
        "rank_pattern": {"up_proj": 2},
    }  # fmt: skip


def test_what_a_shape_holds_is_the_norm_of_its_projection_and_grows_with_the_rank():
    one = kind(modules=1)
    change = torch.randn(32, 32, generator=torch_generator(0))
    for n in NBLOCKS:
        values = [held(change, one, (n, r)) for r in RANKS]
        assert values == sorted(values)
        assert values[-1] <= float(change.double().square().sum())
    # One block of rank r holds the r largest singular values, by Eckart and Young.
    singular = torch.linalg.svdvals(change.double())
    assert held(change, one, (1, 4)) == pytest.approx(float(singular[:4].square().sum()), rel=1e-5)


def test_the_allocation_is_the_best_of_all_by_brute_force():
    generator = torch_generator(1)
    kinds = [kind(name, size) for name, size in (("a", 8), ("b", 16), ("c", 24))]
    values = {
        one.ending: {
            c: 0.0 if c == NONE else float(torch.rand((), generator=generator))
            for c in choices(one, (1, 2), (1, 2, 4))
        }
        for one in kinds
    }
    for budget in (20, 100, 333, 2000):
        best = allocate(kinds, values, budget)
        assert parameters_of(kinds, best) <= budget
        options = itertools.product(*(values[one.ending].items() for one in kinds))
        fitting = [
            sum(value for _, value in option)
            for option in options
            if sum(k.parameters(c) for k, (c, _) in zip(kinds, option, strict=True)) <= budget
        ]
        assert sum(values[e][c] for e, c in best.items()) == pytest.approx(max(fitting))


def test_titles_say_the_shape_or_who_has_which():
    kinds = [kind("a"), kind("b")]
    assert title_of(uniform(kinds, (4, 2))) == "4 x 2"
    assert title_of({"a": (1, 8), "b": NONE}) == "1 x 8 on a; none on b"


@pytest.mark.parametrize("probe", ["gradient", "short-run"])
def test_changes_point_downhill_and_leave_the_model_alone(probe):
    model = tiny_llama()
    kinds = module_kinds(model, ["q_proj", "down_proj"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.randint(model.config.vocab_size, (4, 12), generator=torch_generator(0))
    batch = {"input_ids": ids, "labels": ids}
    changes = weight_changes(model, kinds, lambda step: batch, probe=probe, steps=2, lr=1e-3)
    assert set(changes) == {name for one in kinds for name in one.modules}
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        start = model(**batch).loss
        scale = 1e-2 if probe == "gradient" else 1.0
        for name, change in changes.items():
            model.get_submodule(name).weight += scale * change
        assert model(**batch).loss < start


def test_kinds_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match=r"ends with 'q_prj'. Did you mean 'q_proj'\?"):
        module_kinds(tiny_llama(), ["q_prj"])


def test_an_unknown_probe_lists_the_known_ones():
    with pytest.raises(ValueError, match="gradient, short-run"):
        weight_changes(nn.Identity(), [], lambda step: None, probe="hessian", steps=1, lr=1.0)


def row(id, method, loss, parameters, sd=0.01):
    return {
        "id": id, "label": id, "method": method, "parameters": parameters, "memory_bytes": 1.0,
        "step_seconds": 1.0, "mean": {"loss": loss}, "sd": {"loss": sd},
    }  # fmt: skip


def test_the_front_and_the_sentences_follow_from_the_rows():
    rows = [
        row("full", "full", 1.0, 10_000), row("lora", "lora", 2.0, 100),
        row("more", "more", 2.1, 100), row("ia3", "ia3", 2.5, 10),
    ]  # fmt: skip
    assert front_of(rows, "loss")["parameters"] == ["lora", "ia3"]
    said = notes(rows, "loss")
    assert "more (100 % of the parameters) is worse than lora" in said[0]
    assert "better than LoRA in 0 of 1 comparisons, level in 0, worse in 1" in said[1]
    rows[2]["mean"]["loss"] = 1.99
    assert "level with" in notes(rows, "loss")[0]
    rows[2]["mean"]["loss"] = 1.9
    assert "better than" in notes(rows, "loss")[0]
    for one in rows:
        one["sd"]["loss"] = None
    assert "one seed, so this may be chance" in notes(rows, "loss")[0]
    rows[2] |= {"parameters": 50, "settings": {"nblocks": 1, "block_rank": 2}}
    said = notes(rows, "loss")
    assert "none is compared" in said[0]
    assert "is LoRA with alpha = r" in said[1]


def test_the_winner_is_chosen_by_validation_and_can_be_used_as_it_is():
    rows = [row("search-a", "more", 1.0, 100), row("search-b", "more", 2.0, 100)]
    settings = {"nblocks": 4, "block_rank": 2, "nblocks_pattern": {"up_proj": 1}}
    for one, tried in zip(rows, ({"0.1": 3.0}, {"0.1": 9.0, "0.3": 2.9}), strict=True):
        one |= {"settings": settings, "targets": ["q_proj", "up_proj"], "lr": 0.3, "tried": tried}
    best = winner(rows, ["search-a", "search-b"], "loss")
    assert best["id"] == "search-b"  # worse on the test split, which must not choose
    method = from_plain(MethodConfig, yaml.safe_load(best["recipe"])["methods"][0], source="test")
    assert (method.id, method.settings, method.targets) == ("b", settings, ("q_proj", "up_proj"))
    config = eval(best["config"], {"MoReConfig": MoReConfig})
    assert (config.nblocks, config.block_rank) == (4, 2)
    assert config.target_modules == {"q_proj", "up_proj"}


def test_a_look_is_compared_with_training_pair_by_pair():
    rung = {"steps": 20, "scores": {"a": 1.0, "b": 2.0, "c": 3.0}}
    alike = look_notes("4 x 2", True, {"a": 0.9, "b": 0.5, "c": 0.1}, rung, "loss")
    assert "proposes 4 x 2, which is among the finalists" in alike[0]
    assert "3 of 3 pairs" in alike[1]
    other = look_notes("4 x 2", False, {"a": 0.5, "b": 0.9, "c": 0.6}, rung, "loss")
    assert "did not survive" in other[0]
    assert "1 of 3 pairs" in other[1]


def test_one_ending_with_two_shapes_is_two_kinds_that_peft_can_tell_apart():
    model = tiny_llama()
    model.model.layers[1].mlp.down_proj = nn.Linear(24, 12)
    kinds = module_kinds(model, ["down_proj"])
    assert [(one.in_features, one.out_features) for one in kinds] == [(24, 16), (24, 12)]
    allocation = {kinds[0].ending: (4, 2), kinds[1].ending: (1, 3)}
    settings, targets = settings_of(kinds, allocation)
    wrapped = adapt(model, "more", settings, list(targets))
    assert trainable_parameters(wrapped) == parameters_of(kinds, allocation)


def test_a_matrix_of_more_blocks_than_fit_is_no_choice():
    small = kind(size=4)
    assert (8, 1) not in choices(small, NBLOCKS, RANKS)
    assert NONE in choices(small, NBLOCKS, RANKS)
    assert isinstance(settings_of([kind("a")], {"a": (1, 1)}), tuple)
    with pytest.raises(ValueError, match="without any adapter"):
        settings_of([kind("a")], {"a": NONE})
