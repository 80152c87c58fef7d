"""`manticore export`: what leaves as a class of transformers, and what leaves as ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import manticore
from manticore.cli import export_check, export_child
from manticore.cli.main import main
from manticore.conversion.transfer import transfer
from manticore.hybrids.card import read_front_matter
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from manticore.models.configuration_mixer_lm import MixerLMConfig
from manticore.models.loading import adapter_message
from manticore.models.modeling_mixer_lm import MixerForCausalLM
from tests.cli.tiny_run import make_project
from tests.models.tiny import tiny

IDS = torch.arange(3, 40).unsqueeze(0)
MAMBA2 = {"mixer": "mamba2", "head_dim": 8, "norm_eps": 1e-6}
SHARED = {"mixing": "shared"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with two models and a tokenizer."""
    folder = tmp_path_factory.mktemp("project")
    make_project(folder)
    return folder


def save_hybrid(project, folder, mixture, **options):
    """A hybrid of both models with this mixture, and the tokenizer beside it."""
    parts = [str(project / name) for name in ("neox", "mamba")]
    hybrid = ManticoreForCausalLM.from_components(parts, num_blocks=2, **options)
    hybrid.set_mixture(torch.tensor(mixture))
    hybrid.generation_config.max_new_tokens = 7
    hybrid.save_pretrained(folder)
    AutoTokenizer.from_pretrained(project / "neox").save_pretrained(folder)
    return folder


def logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize(
    ("k", "name", "class_name", "options"),
    [
        (0, "neox", "GPTNeoXForCausalLM", {}),
        (1, "mamba", "MambaForCausalLM", {}),
        (0, "neox", "GPTNeoXForCausalLM", SHARED),
    ],
)
def test_a_one_hot_hybrid_leaves_as_its_component(project, tmp_path, k, name, class_name, options):
    row = [float(k == 0), float(k == 1)]
    folder = save_hybrid(project, tmp_path / "hot", [row, row], **options)
    assert main(["export", str(folder), "--out", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [class_name]
    assert "manticore" not in json.dumps(config)
    assert torch.equal(logits(tmp_path / "out"), logits(project / name))  # the very same weights


def test_a_pruned_hybrid_leaves_as_its_component(project, tmp_path):
    folder = save_hybrid(project, tmp_path / "hybrid", [[0.1, 0.9], [0.2, 0.8]])
    pruned, out = str(tmp_path / "pruned"), str(tmp_path / "out")
    assert main(["prune", str(folder), "--one-hot", "--out", pruned]) == 0
    assert main(["export", pruned, "--out", out]) == 0
    assert torch.equal(logits(out), logits(project / "mamba"))


@pytest.mark.parametrize(
    ("mixture", "options", "reason"),
    [
        ([[0.1, 0.9], [0, 1]], {}, "mixes components 0, 1 in its embeddings"),
        ([[0, 1], [0.1, 0.9]], {}, "mixes components 0, 1 in its block 2"),
        ([[1, 0], [0, 1]], {}, "from component 0 to component 1 between block 1 and block 2"),
        ([[1, 0], [0, 1]], SHARED, "a change of stream stands there"),
    ],
)
def test_what_stays_in_the_way_is_named(project, tmp_path, capsys, mixture, options, reason):
    mixture = [[float(weight) for weight in row] for row in mixture]
    folder = save_hybrid(project, tmp_path / "hybrid", mixture, **options)
    assert main(["export", str(folder), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "loading it takes `import manticore`" in out
    assert reason in out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "import manticore  #" in card
    assert reason in card
    assert torch.equal(logits(tmp_path / "out"), logits(folder))


def test_a_mixture_of_heads_is_named_with_its_router(project, tmp_path, capsys):
    folder = save_hybrid(project, tmp_path / "hybrid", [[1.0, 0.0], [1.0, 0.0]])
    hybrid = ManticoreForCausalLM.from_pretrained(folder)
    hybrid.set_mixture(torch.tensor([[1.0, 0], [1, 0]]), head=torch.tensor([0.5, 0.5]))
    hybrid.save_pretrained(folder)
    assert main(["export", str(folder), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    assert "components 0, 1 in its heads, weighed by a router" in capsys.readouterr().out


def test_check_proves_a_granite_hybrid_without_manticore(tmp_path, capsys):
    model, _ = transfer(tiny("llama"), ["attention", MAMBA2, MAMBA2, "attention"])
    model.save_pretrained(tmp_path / "converted")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "converted"), "--check", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "GraniteMoeHybridForCausalLM of transformers" in captured.out
    assert "Manticore was never imported" in captured.out
    assert "no tokenizer.json" in captured.err
    record = json.loads((out / "export.json").read_text())
    assert record["check"]["class"] == "GraniteMoeHybridForCausalLM"
    assert record["check"]["new_tokens"] == 16
    card = (out / "README.md").read_text()
    assert "import manticore" not in card
    assert "Limits" not in card
    assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == 64


def test_the_blocker_of_the_check_stops_an_import(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {export_child.__file__.rpartition('/')[0]!r})\n"
        "from export_child import Blocker; sys.meta_path.insert(0, Blocker()); import manticore"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "manticore is blocked" in done.stderr


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("logits", 1e-3, "its logits differ by 0.001"),
        ("logits", float("nan"), "its logits differ by nan"),
        ("tokens", 1, "16 greedily generated tokens are not the same"),
    ],
)
def test_a_failed_check_leaves_nothing_behind(
    project, tmp_path, capsys, monkeypatch, name, change, message
):
    def changed(source):
        found = honest(source)
        return {**found, name: found[name] + change}

    def in_this_process(folder, expected, how):
        assert how == "alone"
        return export_child.main(str(folder), str(expected), "with-manticore")

    honest = export_check.expectation
    monkeypatch.setattr(export_check, "expectation", changed)
    monkeypatch.setattr(export_check, "ask_child", in_this_process)  # a start takes seconds
    folder = save_hybrid(project, tmp_path / "hot", [[1.0, 0.0], [1.0, 0.0]])
    assert main(["export", str(folder), "--check", "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["hot"]


def test_tokenizer_generation_settings_licence_and_dtype_travel(project, tmp_path):
    folder = save_hybrid(project, tmp_path / "hot", [[1.0, 0.0], [1.0, 0.0]])
    ManticoreForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: a/b\n---\nText\n")
    out = tmp_path / "out"
    assert main(["export", str(folder), "--out", str(out)]) == 0
    text = "the old man saw a grey sea"
    ours, theirs = (AutoTokenizer.from_pretrained(f) for f in (folder, out))
    assert ours(text).input_ids == theirs(text).input_ids
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.generation_config.max_new_tokens == 7
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    front = read_front_matter((out / "README.md").read_text())
    assert (front["license"], front["base_model"]) == ("mit", "a/b")


def test_a_dry_run_writes_nothing(project, tmp_path, capsys):
    folder = save_hybrid(project, tmp_path / "hot", [[0.0, 1.0], [0.0, 1.0]])
    assert main(["export", str(folder), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    assert "class: MambaForCausalLM of transformers" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_bad_input_is_one_message(project, tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    neox = str(project / "neox")
    for words, message in (
        ([neox], "--out is missing"),
        ([neox, "--out", str(tmp_path / "out")], "a class of transformers already"),
        ([neox, "--out", str(full)], "is not empty"),
        ([str(tmp_path / "none"), "--out", str(tmp_path / "out")], "does not exist"),
    ):
        assert main(["export", *words]) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in full.iterdir()] == ["notes.txt"]


def test_check_proves_a_model_of_mixers_as_mamba(tmp_path, capsys):
    config = MixerLMConfig(layers=["mamba", "mamba"], d_model=16, vocab_size=50, head_bias=False)
    model = MixerForCausalLM.from_generator(config, torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "mixers")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "mixers"), "--check", "--out", str(out)]) == 0
    assert "Manticore was never imported" in capsys.readouterr().out
    assert json.loads((out / "export.json").read_text())["check"]["class"] == "MambaForCausalLM"
    assert "Limits" not in (out / "README.md").read_text()


def test_a_length_that_nobody_gave_is_a_limit_in_the_card(tmp_path):
    layers = [{"mixer": "mh-attention", "n_heads": 4}, "swiglu"]
    config = MixerLMConfig(layers=layers, d_model=16, vocab_size=50, head_bias=False)
    MixerForCausalLM(config).save_pretrained(tmp_path / "mixers")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "mixers"), "--out", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert "# LlamaForCausalLM" in card
    assert r"max\_position\_embeddings in config.json is the default" in card


@pytest.mark.parametrize("verb", [["export", "--out", "unwritten"], ["doctor"]])
def test_a_folder_of_an_adapter_says_how_to_make_a_model_of_it(verb, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert main([verb[0], "adapter", *verb[1:]]) == 2
    said = capsys.readouterr().err
    assert "adapter holds an adapter, not a model" in said
    assert "AutoPeftModelForCausalLM.from_pretrained('adapter').merge_and_unload()" in said
    assert not (tmp_path / "unwritten").exists()


def test_the_way_to_merge_an_adapter_makes_a_model(project, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(project / "neox")
    adapted = get_peft_model(base, LoraConfig(r=2, init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.eval()(IDS).logits
    command = adapter_message(tmp_path / "adapter").split('python -c "')[1].split('". Then')[0]
    here = os.environ | {"PYTHONPATH": str(Path(manticore.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, env=here, check=True)
    assert torch.allclose(logits(tmp_path / "merged"), expected, atol=1e-5)
