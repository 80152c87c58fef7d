"""`manticore export --layout fla`: to flash-linear-attention, and back from it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from manticore.cli.main import main
from manticore.conversion.transfer import transfer
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from manticore.models.imports_fla import read_fla_model
from manticore.models.loading import load_component
from manticore.models.supported import UnsupportedFamilyError
from tests.cli.tiny_run import make_project
from tests.models.test_fla_weights import ATTENTION, TOKEN, blocks, small_model
from tests.models.tiny import tiny

GLA = {"mixer": "gated-linear-attention", "rotary": False, "use_gate": False}
STORIES = Path(__file__).parents[2] / "recipes" / "zoo" / "stories260k"
IDS = torch.arange(20).unsqueeze(0)


def export(model: Path, out: Path, *words: str) -> int:
    return main(["export", str(model), "--out", str(out), *words])


def test_a_model_of_mixers_goes_there_and_back(tmp_path, capsys):
    model = small_model(blocks(TOKEN["gated_deltanet"], ATTENTION))
    model.save_pretrained(tmp_path / "ours")
    assert export(tmp_path / "ours", tmp_path / "fla", "--layout", "fla", "--check") == 0
    out = capsys.readouterr().out
    assert "class: GatedDeltaNetForCausalLM of flash-linear-attention" in out
    assert "generated tokens; read back by Manticore" in out
    record = json.loads((tmp_path / "fla/export.json").read_text())
    assert (record["layout"], record["needs_manticore"]) == ("fla", False)
    card = (tmp_path / "fla/README.md").read_text()
    assert "library_name: fla" in card
    assert "- gated_deltanet" in card
    assert "\nimport fla  #" in card

    assert export(tmp_path / "fla", tmp_path / "back") == 0
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert all(torch.equal(back.state_dict()[k], v) for k, v in model.state_dict().items())


def test_a_converted_model_leaves_with_its_tokenizer(tmp_path):
    make_project(tmp_path)
    model, _ = transfer(tiny("llama"), [GLA, "attention", GLA, "attention"])
    model.save_pretrained(tmp_path / "converted")
    AutoTokenizer.from_pretrained(tmp_path / "neox").save_pretrained(tmp_path / "converted")
    assert export(tmp_path / "converted", tmp_path / "fla", "--layout", "fla") == 0
    config = json.loads((tmp_path / "fla/config.json").read_text())
    assert (config["model_type"], config["attn"]["layers"]) == ("gla", [1, 3])
    assert (tmp_path / "fla/tokenizer.json").is_file()
    found = read_fla_model(tmp_path / "fla")(IDS).logits
    torch.testing.assert_close(found, model(IDS).logits, atol=1e-4, rtol=0)


def test_a_llama_leaves_as_the_transformer_of_fla(tmp_path):
    source = tiny("llama")
    source.save_pretrained(tmp_path / "llama")
    assert export(tmp_path / "llama", tmp_path / "fla", "--layout", "fla") == 0
    found = read_fla_model(tmp_path / "fla")(IDS).logits
    torch.testing.assert_close(found, source(IDS).logits, atol=1e-5, rtol=0)


def test_what_fla_does_not_compute_is_refused_before_anything_is_written(tmp_path, capsys):
    model = small_model(blocks({**TOKEN["gla"], "gate_normalizer": 8.0}))
    model.save_pretrained(tmp_path / "ours")
    assert export(tmp_path / "ours", tmp_path / "fla", "--layout", "fla") == 2
    assert "has gate_normalizer=8.0, and there it is 16.0" in capsys.readouterr().err
    assert not (tmp_path / "fla").exists()


def test_the_noise_of_float32_in_a_real_model_is_no_difference(tmp_path, capsys):
    """Fresh retention norms sums of nearly nothing: in float32 its own logits are 3e-4 off."""
    decays = {"shortest_memory": 32, "longest_memory": 32 * 2**7}
    layer = {"mixer": "retention", "use_gate": False, **decays}
    model, _ = transfer(STORIES, layer, copy="all")
    model.save_pretrained(tmp_path / "ours")
    AutoTokenizer.from_pretrained(STORIES).save_pretrained(tmp_path / "ours")
    assert export(tmp_path / "ours", tmp_path / "fla", "--layout", "fla", "--check") == 0
    assert "class: RetNetForCausalLM" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["gla", "mamba"])
def test_other_verbs_say_how_a_folder_of_fla_becomes_ours(name, tmp_path):
    small_model(blocks(TOKEN[name])).save_pretrained(tmp_path / "ours")
    assert export(tmp_path / "ours", tmp_path / "fla", "--layout", "fla") == 0
    with pytest.raises(UnsupportedFamilyError, match=r"of flash-linear-attention\. `manticore exp"):
        load_component(tmp_path / "fla")


def test_a_hybrid_of_pretrained_models_is_told_to_be_pruned(tmp_path, capsys):
    make_project(tmp_path)
    parts = [str(tmp_path / name) for name in ("neox", "mamba")]
    ManticoreForCausalLM.from_components(parts, num_blocks=2).save_pretrained(tmp_path / "hybrid")
    assert export(tmp_path / "hybrid", tmp_path / "fla", "--layout", "fla") == 2
    assert "Prune it to one component" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["transformers", "fla"])
def test_a_folder_of_fla_may_be_read_for_either(layout, tmp_path):
    small = small_model(blocks(TOKEN["retnet"]))
    small.save_pretrained(tmp_path / "ours")
    assert export(tmp_path / "ours", tmp_path / "fla", "--layout", "fla") == 0
    assert export(tmp_path / "fla", tmp_path / "out", "--layout", layout) == 0
    name = "RetNetForCausalLM" if layout == "fla" else "MixerForCausalLM"
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == [name]
