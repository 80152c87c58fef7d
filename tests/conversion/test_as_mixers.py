"""Converted models become models of mixers that compute the same, or the setting that cannot."""

from pathlib import Path

import pytest
import torch

from manticore.conversion.as_mixers import as_mixer_model
from manticore.conversion.transfer import identity, transfer
from manticore.models.exports_fla import fla_config, save_as_fla
from manticore.models.imports_fla import read_fla_model
from tests.conversion.models import maximal
from tests.models.tiny import tiny, token_ids

HEADS = 4
RETENTION = {
    "mixer": "retention", "use_gate": False, "shortest_memory": 32,
    "longest_memory": 32 * 2 ** (HEADS - 1),
}  # fmt: skip
OWN = {"projections": "own", "n_heads": 2, "norm_eps": 1e-6}
WINDOW = {"mixer": "sliding-attention", "window": 9}
GLA = {"mixer": "gated-linear-attention", "rotary": False, "use_gate": False}
TOLERANCE = 1e-6
"""In float64, where folding rounds nothing: heads keep their rotary angles as float32."""


def drawn(model):
    """The model with gains and decays that no layer starts with."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mixer." in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@torch.no_grad()
def test_attention_that_was_kept_becomes_attention_bit_by_bit(family, tmp_path: Path):
    source = identity(tiny(family)).double()
    model = as_mixer_model(source)
    given = list(source.state_dict().values())
    assert len(given) == len(model.state_dict())
    for name, value in model.state_dict().items():
        assert any(torch.equal(value, other) for other in given), name
    ids = token_ids(model, 2, 40)
    assert maximal(model(ids).logits - source(ids).logits) < TOLERANCE
    assert fla_config(model.config)["model_type"] == "transformer"
    save_as_fla(model, tmp_path)
    back = read_fla_model(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    assert torch.equal(back(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (RETENTION, "retnet"),
        ({**RETENTION, "norm_eps": 1e-3}, "retnet"),
        (GLA, "gla"),
        ({"mixer": "mh-gated-linear-attention", "n_heads": 2, "norm_eps": 1e-6}, "gla"),
        (
            {**OWN, "mixer": "gated-deltanet"},
            "gated_deltanet",
        ),
        ({**OWN, "mixer": "deltanet"}, "delta_net"),
        (
            {**OWN, "mixer": "linear-attention", "normalize": "rms", "norm_eps": 16e-6},
            "linear_attn",
        ),
        ([GLA, "attention", "attention", GLA], "gla"),
        ([RETENTION, "attention", RETENTION, WINDOW], "retnet"),
    ],
    ids=[
        "retention",
        "another epsilon",
        "gla",
        "its own gla",
        "gated deltanet",
        "deltanet",
        "linear",
        "gla hybrid",
        "retention hybrid",
    ],
)
@torch.no_grad()
def test_what_heads_carry_is_folded_into_weights(target, kind, tmp_path: Path):
    source = drawn(transfer(tiny("llama"), target)[0]).double()
    model = as_mixer_model(source)
    ids = token_ids(source, 2, 40)
    assert maximal(model(ids).logits - source(ids).logits) < TOLERANCE
    save_as_fla(model, tmp_path)
    back = read_fla_model(tmp_path)
    assert fla_config(back.config)["model_type"] == kind
    assert maximal(back(ids).logits - source(ids).logits) < TOLERANCE
    assert torch.equal(back.generate(ids[:1], max_new_tokens=8),
                       source.generate(ids[:1], max_new_tokens=8))  # fmt: skip


@pytest.mark.parametrize(
    ("family", "target", "message"),
    [
        ("gpt_neox", "attention", "topology='parallel'.*'sequential'"),
        ("gpt2", "attention", "channel_mixer='mlp'.*'gated'"),
        ("olmo2", "attention", "topology='post-norm'"),
        ("qwen3", "attention", "qk_norm='head-rms', which no mixer has"),
        ("llama", "retention", "shortest_memory=4 .* those of 32 and 256. Convert with these"),
        ("llama", {**RETENTION, "use_gate": True}, r"gate.bias .* Convert with use_gate: false"),
        ("qwen2", RETENTION, r"Layer 0 \(retention\) has a [qkv].bias that is not zero"),
        ("llama", {**GLA, "rotary": True}, "Convert with rotary: false"),
        ("llama", "gated-deltanet", "Convert the others with projections: own"),
    ],
)
def test_what_no_mixer_computes_is_named(family, target, message):
    source = drawn(transfer(tiny(family), target)[0])
    with pytest.raises(ValueError, match=message):
        as_mixer_model(source)


def test_a_rotation_that_fla_fixes_is_refused_there():
    model = as_mixer_model(transfer(tiny("llama", rope_theta=500.0), RETENTION)[0])
    assert model.config.specs()[0].rotary_base == 500
    with pytest.raises(ValueError, match=r"rotary_base=500\.0, and there it is 10000\.0"):
        fla_config(model.config)


def test_angles_of_another_rule_are_refused():
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "attention_factor": 1.5}
    with pytest.raises(ValueError, match="has rotary angles of "):
        as_mixer_model(identity(tiny("llama", rope_parameters=yarn)))
