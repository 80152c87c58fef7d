"""Architectures that take part: by layers, by preset, a user's module, any Hugging Face config."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from manticore.evaluation.mad import protocol
from manticore.evaluation.mad.entry import Entry, entry_of_layers, layers_title
from manticore.evaluation.mad.estimate import estimate
from manticore.evaluation.mad.group import entry_of, train_group
from manticore.evaluation.mad.plan import plan_trials
from manticore.evaluation.mad.settings import Setting, changed_settings
from manticore.seeds import torch_generator

CAUSAL_MEAN = "tests.evaluation.mad_module:CausalMean"
POCKET = protocol("pocket")
MEMORY, COMPRESS = (
    next(s for s in POCKET.settings if s.task == task) for task in ("memorization", "compression")
)
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 300}


def weights(entry: Entry, setting: Any = MEMORY, seed: int = 0) -> dict[str, torch.Tensor]:
    model = entry.build(setting, "fixed", torch_generator(seed))
    return {name: p.detach() for name, p in model.named_parameters()}


def small(**changes: Any) -> dict[str, Any]:
    """Settings of a training that takes a moment."""
    rules = protocol("pocket").only(["memorization"])
    entry = changes.pop("entry", None) or entry_of_layers(["attention", "rwkv7-channel"], 16)
    shared = plan_trials([entry], rules, [0])[0].shared
    training = {**shared["training"], "steps": 4, "eval_every": 2, "batch_size": 8}
    return {**shared, "num_train": 16, "num_valid": 8, "num_test": 8, "training": training}


@pytest.mark.parametrize("setting", [MEMORY, COMPRESS], ids=["lm", "autoencoder"])
@pytest.mark.parametrize(
    "entry",
    [
        entry_of_layers(["attention", "rwkv7-channel"], 16),
        entry_of_layers(["module", "rwkv7-channel"], 16, module=CAUSAL_MEAN),
        Entry(name="gpt2", hf_config=GPT2),
    ],
    ids=["layers", "module", "hf"],
)
def test_every_kind_of_entry_builds_and_its_seed_fixes_the_weights(entry, setting):
    state = torch.random.get_rng_state()
    first, second = weights(entry, setting), weights(entry, setting)
    other = weights(entry, setting, seed=1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(state, torch.random.get_rng_state())
    model = entry.build(setting, "fixed", torch_generator(0))
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    assert model(tokens).logits.shape == (2, 8, setting.options["vocab_size"])


def test_the_record_s_settings_rebuild_the_same_model():
    entry = entry_of_layers(["attention:n_heads=2", "rwkv7-channel"], 16)
    shared = json.loads(json.dumps(plan_trials([entry], POCKET, [0])[0].shared))
    again = weights(entry_of(shared))
    assert all(torch.equal(again[name], p) for name, p in weights(entry).items())


@pytest.mark.parametrize("kind", ["module", "hf"])
def test_outside_models_train(kind: str):
    entry = {
        "module": entry_of_layers(["module", "rwkv7-channel"], 16, module=CAUSAL_MEAN),
        "hf": Entry(name="gpt2", hf_config=GPT2),
    }[kind]
    job = {"shared": small(entry=entry), "points": [{"lr": 1e-2, "weight_decay": 0.0, "seed": 0}]}
    (outcome,) = train_group(job)["outcomes"]
    assert outcome["steps"] == 4
    assert not outcome["diverged"]


def test_a_training_that_diverges_is_an_outcome():
    points = [{"lr": lr, "weight_decay": 0.0, "seed": 0} for lr in (1e-3, 1e30)]
    found = train_group({"shared": small(), "points": points})["outcomes"]
    assert [outcome["diverged"] for outcome in found] == [False, True]
    assert {"ceiling", "chance"} <= set(found[1])


def test_the_key_follows_defaults_and_forgets_names():
    plain = entry_of_layers(["attention", "rwkv7-channel"], 16)
    spelt = entry_of_layers(["attention:n_heads=1", "rwkv7-channel"], 16, name="mine")
    other = entry_of_layers(["attention:n_heads=2", "rwkv7-channel"], 16)
    keys = [[p.trial.key for p in plan_trials([e], POCKET, [0])] for e in (plain, spelt, other)]
    assert keys[0] == keys[1]
    assert not set(keys[0]) & set(keys[2])


def test_planned_counts_are_the_protocol_s():
    full = protocol("full")
    planned = plan_trials([entry_of_layers(["attention", "rwkv7-channel"], 16)], full, [0, 1])
    assert len(planned) == 792 == len({one.trial.key for one in planned})
    assert len({one.group for one in planned}) == 66


def test_costs_are_those_of_the_built_model():
    for layers in (["attention", "rwkv7-channel"], ["deltanet", "rwkv7-channel"] * 2):
        entry = entry_of_layers(layers, 16)
        setting = protocol("baseline").settings[0]
        assert setting.options["vocab_size"] == 16
        assert entry.costs()["parameters"] == sum(
            p.numel() for p in weights(entry, setting).values()
        )
    module = entry_of_layers(["module", "rwkv7-channel"], 16, module=CAUSAL_MEAN).costs()
    assert module["flops_per_token"] is None
    assert Entry(name="gpt2", hf_config=GPT2).costs()["parameters"] > 0


def test_a_user_s_module_is_known_by_its_code():
    entry = entry_of_layers(["module", "rwkv7-channel"], 16, module=CAUSAL_MEAN)
    assert len(entry.identity["module"]["sha256"]) == 64
    assert entry.token_mixers() == ["module"]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("tests.evaluation.mad_module:Oracle", "not causal"),
        ("tests.evaluation.mad_module:Nowhere", "NaN or infinity"),
        ("tests.evaluation.mad_module:Halving", "same shape"),
        ("tests.evaluation.mad_module:Demanding", "give the rest a default"),
        ("tests.evaluation.mad_module:not_a_class", "is no class"),
        ("tests.evaluation.mad_module:Missing", "has no 'Missing'"),
        ("no_such_package:Thing", "no module 'no_such_package'"),
        ("justaname", "not of the form"),
    ],
)
def test_modules_that_cannot_take_part_are_refused_before_training(module: str, message: str):
    entry = entry_of_layers(["module", "rwkv7-channel"], 16, module=module)
    with pytest.raises(ValueError, match=message):
        plan_trials([entry], POCKET, [0])


def test_architectures_that_cannot_be_built_say_why():
    with pytest.raises(ValueError, match=r"Unknown mixer 'atention'.* Did you mean 'attention'"):
        entry_of_layers(["atention", "rwkv7-channel"], 16)
    with pytest.raises(ValueError, match="n_heads=3 does not divide"):
        plan_trials([entry_of_layers(["attention:n_heads=3", "rwkv7-channel"], 16)], POCKET, [0])
    with pytest.raises(ValueError, match="--module pkg:Class"):
        entry_of_layers(["module", "rwkv7-channel"], 16)
    with pytest.raises(ValueError, match="is not used"):
        entry_of_layers(["attention"], 16, module=CAUSAL_MEAN)
    with pytest.raises(ValueError, match="no model_type 'nonsense'"):
        plan_trials([Entry(name="x", hf_config={"model_type": "nonsense"})], POCKET, [0])
    with pytest.raises(ValueError, match=r"max_position_embeddings=20 is shorter"):
        plan_trials([Entry(name="x", hf_config={**GPT2, "n_positions": 20})], POCKET, [0])
    twice = [entry_of_layers(["attention", "rwkv7-channel"], 16)] * 2
    with pytest.raises(ValueError, match="one name"):
        plan_trials(twice, POCKET, [0])
    with pytest.raises(ValueError, match="each once"):
        plan_trials(twice[:1], POCKET, [0, 0])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "t5"}, "no causal language model"),
        ({**GPT2, "n_embd": "32"}, "no configuration of 'gpt2': .*n_embd"),
        ({**GPT2, "n_embd": 30, "n_head": 4}, "cannot be built: .*divisible"),
        (BERT, "not causal.*is_decoder"),
    ],
)
def test_configurations_that_cannot_take_part_are_refused_before_training(config, message: str):
    with pytest.raises(ValueError, match=message) as refusal:
        plan_trials([Entry(name="x", hf_config=config)], POCKET, [0])
    assert len(str(refusal.value)) < 500


def test_an_encoder_may_take_part_as_a_decoder():
    assert plan_trials([Entry(name="x", hf_config={**BERT, "is_decoder": True})], POCKET, [0])


def test_settings_that_a_task_does_not_allow_stop_the_plan():
    import dataclasses

    entry = entry_of_layers(["attention", "rwkv7-channel"], 16)
    for changes, message in (
        ({"seq_len": 6}, "seq_len=6"),
        ({"vocab_size": 2}, "vocab_size=2"),
    ):
        settings = changed_settings(POCKET.settings, changes)
        with pytest.raises(ValueError, match=message):
            plan_trials([entry], dataclasses.replace(POCKET, settings=settings), [0])
    with pytest.raises(ValueError, match=r"No task here has an option 'seqlen'. Known: .*seq_len"):
        changed_settings(POCKET.settings, {"seqlen": 6})


def test_an_estimate_counts_and_times_what_is_planned():
    planned = plan_trials([entry_of_layers(["attention", "rwkv7-channel"], 16)], POCKET, [0])
    stated = estimate(planned, processes=2, rate=1e9)
    assert stated.trainings == POCKET.count()
    assert stated.steps == sum(POCKET.steps_of(s) for s in POCKET.settings) * len(POCKET.grid)
    assert stated.flops == pytest.approx(stated.hours * 3600 * 1e9 * 2)
    calls = []
    timed = estimate(planned, worker=lambda job: calls.append(job) or {})
    assert timed.hours is not None
    assert [job["shared"]["training"]["steps"] for job in calls] == [1, 4]
    module = entry_of_layers(["module", "rwkv7-channel"], 16, module=CAUSAL_MEAN)
    with pytest.raises(ValueError, match="Leave --rate out"):
        estimate(plan_trials([module], POCKET, [0]), rate=1e9)


def test_titles_fold_what_repeats():
    assert layers_title(["a", "b", "a", "b"]) == "(a, b) x 2"
    assert layers_title(["a"] * 4) == "a x 4"
    assert layers_title(["a", "a", "b"]) == "a x 2, b"
    assert entry_of_layers(["rwkv7"], 16).name == "RWKV7"


def test_long_filters_are_stretched_over_the_task_unless_they_name_a_length():
    options = {"vocab_size": 16, "seq_len": 32}
    setting = Setting(task="compression", name="small", options=options, num_train=64)
    entry = entry_of_layers(["hyena", "swiglu", "hyena:max_length=64", "swiglu"], d_model=16)
    model = entry.build(setting, "fixed", torch_generator(0))
    lengths = [layer.mixer.spec.max_length for layer in model.model.layers[::2]]
    assert lengths == [32, 64]
    described = entry.identity["layers"]
    assert ["max_length" in layer for layer in described] == [False, False, True, False]
