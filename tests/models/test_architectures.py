"""Named architectures have the sizes that the paper gives them, and unequal ones are told apart."""

import argparse
import json
import re

import pytest

from manticore.cli import mad_show
from manticore.models.architectures import (
    PRESETS,
    architecture,
    architecture_costs,
    comparability,
    find_preset,
)
from manticore.models.configuration_mixer_lm import MixerLMConfig
from manticore.models.modeling_mixer_lm import MixerForCausalLM
from manticore.seeds import torch_generator
from tests.mixers.small import names_with_a_module

ATTENTION = ["mh-attention"] * 2
BUILT = [name for name, layers in PRESETS.items() if set(layers) <= set(names_with_a_module())]
# Counted on athms/mad-lab's own models of two blocks, vocabulary 16. Where a number differs, ours
# mends the original or has another norm, and the difference is spelled out.
ISO_STATE = ["Hyena", "GLA", "RWKV5", "RWKV6", "HyenaExpertsMoE", "MultiHeadHyena", "Mamba"]
MAD_LAB_PARAMETERS = {"Transformer": 407_184, "GLA": 447_408}


@pytest.mark.parametrize("name", BUILT)
def test_costs_equal_those_of_the_built_model(name: str) -> None:
    config = MixerLMConfig(layers=architecture(name), d_model=128, vocab_size=16)
    model = MixerForCausalLM.from_generator(config, torch_generator(0, "test"))
    costs = architecture_costs(name)
    assert costs.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert len(model.model.layers) == len(PRESETS[name])
    assert costs.flops_per_token > 2 * 16 * 128


@pytest.mark.parametrize(
    ("name", "parameters"), [item for item in MAD_LAB_PARAMETERS.items() if item[0] in BUILT]
)
def test_parameters_are_those_of_the_original(name: str, parameters: int) -> None:
    assert architecture_costs(name).parameters == parameters


@pytest.mark.parametrize("name", [name for name in ISO_STATE if name in BUILT])
def test_presets_meet_the_iso_state_rule(name: str) -> None:
    costs = architecture_costs(name)
    assert costs.fixed_mixing_state == costs.mixing_state == 4096
    assert not costs.has_growing_state


def test_the_checker_flags_what_does_not_meet_the_rule() -> None:
    many = architecture_costs(["mh-linear-attention"] * 2)
    one = architecture_costs(["gated-linear-attention"] * 2)
    assert (many.fixed_mixing_state, one.fixed_mixing_state) == (2048, 32768)
    for other in (many, one):
        reasons = comparability(architecture_costs(["mh-gated-linear-attention"] * 2), other)
        assert any(reason.startswith("mixing state: 4,096 against") for reason in reasons)


def test_attention_is_exempt_from_the_rule_and_its_state_grows() -> None:
    short, long = (architecture_costs(ATTENTION, seq_len=length) for length in (128, 256))
    assert short.has_growing_state
    assert short.fixed_mixing_state == 0
    assert long.mixing_state == 2 * short.mixing_state == 4 * 2 * 256 * 128 // 2
    assert comparability(short, architecture_costs("RWKV6"))[0].startswith("parameters")
    assert not any(
        "state" in reason for reason in comparability(short, architecture_costs("RWKV6"))
    )
    sliding = architecture_costs(["mh-sliding-attention"] * 2)
    assert not sliding.has_growing_state
    assert sliding.fixed_mixing_state == 2 * 2 * 32 * 128


def test_other_sizes_are_not_comparable() -> None:
    base = architecture_costs(ATTENTION)
    assert comparability(base, base) == []
    wider = comparability(base, architecture_costs(ATTENTION, d_model=256))
    assert [reason.partition(":")[0] for reason in wider] == [
        "width",
        "parameters",
        "FLOPs per token",
    ]
    longer = comparability(base, architecture_costs(ATTENTION, seq_len=256, vocab_size=32))
    assert [reason.partition(":")[0] for reason in longer][:2] == ["length", "vocabulary"]


def test_an_architecture_is_a_preset_words_or_layers_with_settings() -> None:
    assert architecture("striped-hyena") == architecture(["StripedHyena"])
    assert [layer["mixer"] for layer in architecture("hyena swiglu")] == ["hyena", "swiglu"]
    assert architecture("mamba") == [{"mixer": "mamba"}] * 4
    assert architecture({"mixer": "mamba"}) == [{"mixer": "mamba"}]
    set_layer = {"mixer": "mh-attention", "n_heads": 4, "kernel": "torch", "rotary": False}
    assert architecture(["mh-attention:n_heads=4,kernel=torch,rotary=false", "mlp"])[0] == set_layer
    assert find_preset("gated_delta_net") == "GatedDeltaNet"
    assert find_preset("gated") is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hyena swiglu mamba-2", "Unknown mixer 'mamba-2'. Did you mean 'mamba2'?"),
        (["hyena", "StripedHyena"], "'StripedHyena' is a whole architecture, not a layer"),
        ("transfomer", "Did you mean 'Transformer'?"),
        ("", "at least one layer"),
        ("mh-attention:n_heads swiglu", "'n_heads' is no setting"),
    ],
)
def test_what_is_no_architecture_is_named_with_the_known_ones(spec, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        architecture(spec)


def show(*words: str) -> None:
    parser = argparse.ArgumentParser()
    mad_show.add_arguments(parser)
    assert mad_show.run(parser.parse_args(words)) == 0


def test_show_prints_costs_and_says_what_is_not_comparable(capsys) -> None:
    show("mh-linear-attention", "mh-linear-attention", "--against", "RWKV5")
    printed = capsys.readouterr().out
    assert "not comparable" in printed
    assert "mixing state: 2,048 against 4,096" in printed
    assert f"{architecture_costs('RWKV5').parameters:,}" in printed
    show("rwkv6", "rwkv6-channel", "/", "rwkv6", "rwkv6-channel")
    assert "\ncomparable: rwkv6 rwkv6-channel and rwkv6 rwkv6-channel" in capsys.readouterr().out
    show("mh-attention", "rwkv6-channel", "--json")
    assert '"has_growing_state": true' in capsys.readouterr().out
    show()
    listed = capsys.readouterr().out
    assert all(name in listed for name in PRESETS)


def test_show_names_every_two_that_are_not_comparable(capsys) -> None:
    show("RWKV5", "/", "RWKV6", "/", "mh-attention", "rwkv6-channel", "--json")
    pairs = json.loads(capsys.readouterr().out)["pairs"]
    assert [pair["architectures"] for pair in pairs] == [[0, 1], [0, 2], [1, 2]]
    assert all("parameters" in pair["not_comparable_because"][0] for pair in pairs[1:])
    show("Transformer", "--against", "Transformer")
    assert "attention's state is exempt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rwkv5", "/"], "layers on both sides"),
        (["rwkv5", "--against", "swiglu swiglu"], "is no preset"),
        (["rwkv5", "--seq-len", "0"], "give at least 1"),
    ],
)
def test_show_refuses_what_it_cannot_show(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        show(*words)
