"""The verbs for stages and for finished models, end to end on a tiny project."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from manticore.cli.main import main
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from tests.cli.tiny_run import FEW_ROWS, make_project, snapshot

MIXTURE = [[0.99, 0.01], [0.3, 0.7]]
STORIES = Path(__file__).parents[2] / "recipes" / "zoo" / "stories260k"
PROMPT = "Once upon a time, there was"
IDS = torch.arange(3, 40).unsqueeze(0)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with two models, text and a recipe."""
    folder = tmp_path_factory.mktemp("project")
    make_project(folder)
    return folder


@pytest.fixture(scope="module")
def hybrid(project):
    """A hybrid made by `build --component`, with an uneven mixture."""
    words = [f"--component={project / name}" for name in ("neox", "mamba")]
    assert main(["build", *words, "--num-blocks", "2", "--out", str(project / "hybrid")]) == 0
    model = ManticoreForCausalLM.from_pretrained(project / "hybrid")
    model.set_mixture(torch.tensor(MIXTURE))
    model.save_pretrained(project / "hybrid")
    return project / "hybrid"


def recipe_words(project, *more):
    return [str(project / "recipes" / "small.yaml"), "--quiet", *FEW_ROWS, *more]


def logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(IDS).logits


# Stages


def test_stages_by_verbs_give_the_numbers_of_one_run_and_are_not_done_twice(
    project, tmp_path, capsys
):
    stepwise, at_once = tmp_path / "stepwise", tmp_path / "at-once"
    for verb in ("build", "search", "finetune"):
        words = ["--processes", "1"] if verb == "finetune" else []
        assert main([verb, *recipe_words(project, "--out", str(stepwise), *words)]) == 0
    made = snapshot(stepwise)
    out = capsys.readouterr().out
    assert "before the heads: neox -> mamba" in out
    assert "of which projectors" in out
    assert "validation, nats per token" in out
    for folder in (stepwise, at_once):
        words = ["--out", str(folder), "--processes", "1"]
        assert main(["run", *recipe_words(project, *words)]) == 0
    after = snapshot(stepwise)
    assert {name: after[name] for name in made} == made  # time of change included
    results = [json.loads((f / "result.json").read_text()) for f in (stepwise, at_once)]
    losses = [{row["id"]: row["loss"] for row in result["rows"]} for result in results]
    assert losses[0] == losses[1]
    assert results[0]["samples"] == results[1]["samples"]


def test_build_prints_what_the_record_says(project, tmp_path, capsys):
    assert main(["build", *recipe_words(project, "--out", str(tmp_path / "run"))]) == 0
    out = capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "stages" / "projectors.json").read_text())
    assert len(record["fit"]) == 6  # two directions at three boundaries
    assert all(f"{fit['r2']:.3f}" in out for fit in record["fit"])
    assert all(line in out for line in record["vocabulary"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "start")
    assert f"parameters: {model.num_parameters():,}," in out


@pytest.mark.parametrize("verb", ["build", "search", "finetune", "run"])
def test_a_dry_run_of_a_stage_writes_nothing(project, tmp_path, capsys, verb):
    out = tmp_path / "run"
    assert main([verb, *recipe_words(project, "--out", str(out), "--dry-run")]) == 0
    printed = capsys.readouterr().out
    assert f"would write: {out}" in printed
    assert "parameters: " in printed
    assert not out.exists()


def test_a_stage_of_a_pretraining_recipe_is_refused(capsys):
    assert main(["search", "recipes/zoo/mamba-maths.yaml", "--dry-run"]) == 2
    assert "Unknown kind 'pretrain'" in capsys.readouterr().err


def test_a_hybrid_from_components_is_each_of_them_at_its_corner(project, tmp_path):
    words = [f"--component={project / name}" for name in ("neox", "mamba")]
    assert main(["build", *words, "--num-blocks", "3", "--out", str(tmp_path / "h")]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "h").eval()
    assert AutoTokenizer.from_pretrained(tmp_path / "h").vocab_size == 300
    for k, name in enumerate(("neox", "mamba")):
        model.set_mixture(torch.eye(2)[[k] * 3])
        with torch.no_grad():
            difference = (model(IDS).logits - logits(project / name)).abs().max()
        assert difference < 1e-5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Nothing to build. Give a recipe, or --component"),
        (["--component", "x"], "--out is missing"),
        (["r.yaml", "--component", "x"], "Both --component and r.yaml are given"),
        (["r.yaml", "--num-blocks", "2"], "--num-blocks cannot change a recipe"),
        (["--component", "./nowhere", "--out", "h"], "There is no folder './nowhere'"),
    ],
)
def test_build_says_what_it_needs(capsys, words, message):
    assert main(["build", *words]) == 2
    assert message in capsys.readouterr().err


# eval


def nats_and_bits(model_folder, text, seq_len):
    """Loss of a model on rows of a text, by hand."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    ids = torch.tensor(tokenizer(text).input_ids)
    rows = ids[: len(ids) // seq_len * seq_len].view(-1, seq_len)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        predicted = model(rows).logits[:, :-1].log_softmax(-1)
    nats = -predicted.gather(-1, rows[:, 1:, None]).sum().item()
    n_bytes = sum(len(tokenizer.decode(row[1:]).encode()) for row in rows)
    return nats / rows[:, 1:].numel(), nats / math.log(2) / n_bytes


@pytest.mark.parametrize("name", ["neox", "hybrid"])
def test_eval_gives_the_losses_of_a_computation_by_hand(project, hybrid, tmp_path, capsys, name):
    text = "the old man saw a grey sea and went home " * 12
    (tmp_path / "sea.txt").write_text(text)
    out = tmp_path / "losses.json"
    words = ["--text", str(tmp_path / "sea.txt"), "--seq-len", "20", "--json", "--out", str(out)]
    assert main(["eval", str(project / name), *words]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads(out.read_text())
    nats, bits = nats_and_bits(project / name, text.strip(), 20)
    # float32 sums in another order
    assert record["loss"]["sea"] == pytest.approx(nats, rel=1e-5)
    assert record["bits_per_byte"]["sea"] == pytest.approx(bits, rel=1e-5)
    assert main(["eval", str(project / name), *words[:4], "--out", str(out)]) == 0  # our own
    assert f"{record['loss']['sea']:.4f}" in capsys.readouterr().out


def test_eval_reads_the_split_of_a_recipe(project, capsys):
    recipe = str(project / "recipes" / "small.yaml")
    found = {}
    for split in ("validation", "test"):
        words = ["--data", recipe, "--split", split, "--set", "data.eval_rows=3", "--json"]
        assert main(["eval", str(project / "mamba"), *words]) == 0
        found[split] = json.loads(capsys.readouterr().out)
        assert found[split]["tokens"] == {"tales": 3 * 23, "sums": 3 * 23}
    assert found["validation"]["loss"] != found["test"]["loss"]


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("nowhere", ["--text", "tales.txt"], "nowhere does not exist. Give the folder of a model"),
        ("tales.txt", ["--text", "tales.txt"], "tales.txt is a file. Give the folder of a model"),
        ("recipes", ["--text", "tales.txt"], "recipes holds no model. Give a folder with config"),
        ("neox", ["--text", "nowhere.txt"], "There is no file or folder nowhere.txt"),
        ("neox", ["--text", "tales.txt", "--split", "test"], "--split is for --data"),
        ("neox", ["--data", "r.yaml", "--seq-len", "9"], "--seq-len is for --text"),
        ("neox", ["--data", "recipes/smal.yaml"], "Did you mean 'recipes/small.yaml'?"),
        ("neox", ["--text", "tales.txt", "--out", "sums.txt"], "did not write it. Choose a new"),
        ("neox", ["--text", "tales.txt", "--batch-size", "0"], "--batch-size 0 is no batch"),
        ("neox", ["--text", "tales.txt", "--device", "abacus"], "--device abacus cannot be used"),
    ],
)
def test_eval_says_what_is_wrong(project, monkeypatch, capsys, model, words, message):
    monkeypatch.chdir(project)
    before = snapshot(project)
    assert main(["eval", model, *words]) == 2
    assert message in capsys.readouterr().err
    assert snapshot(project) == before


def test_a_model_without_its_tokenizer_takes_one_by_name(project, tmp_path, capsys):
    model = tmp_path / "bare"
    shutil.copytree(project / "neox", model, ignore=shutil.ignore_patterns("tokenizer*"))
    words = ["eval", str(model), "--text", str(project / "sums.txt")]
    assert main(words) == 2
    assert "no tokenizer.json" in capsys.readouterr().err
    assert main([*words, "--seq-len", "16", "--tokenizer", str(project / "mamba")]) == 0


def test_damaged_weights_of_a_hybrid_are_one_message(hybrid, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(hybrid, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert main(["generate", str(damaged), "--prompt", "x"]) == 2
    assert "do not load" in capsys.readouterr().err


# generate


@pytest.mark.parametrize("name", ["mamba", "hybrid"])
@pytest.mark.parametrize("beams", [1, 3])
def test_greedy_text_is_that_of_transformers(project, hybrid, capsys, name, beams):
    words = ["--max-new-tokens", "6", "--temperature", "0", "--num-beams", str(beams)]
    assert main(["generate", str(project / name), "--prompt", "the old", *words]) == 0
    printed = capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(project / name)
    model = AutoModelForCausalLM.from_pretrained(project / name, dtype=torch.float32)
    ids = tokenizer("the old", return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=6, do_sample=False, num_beams=beams)
    expected = tokenizer.decode(made[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
    assert printed == f"the old{expected}\n"


def test_words_are_apart_where_a_tokenizer_drops_the_first_space(tmp_path, capsys):
    for beams in ("1", "2"):
        words = ["--max-new-tokens", "12", "--temperature", "0", "--num-beams", beams]
        out = tmp_path / f"{beams}.json"
        words += ["--out", str(out)]
        assert main(["generate", str(STORIES), "--prompt", PROMPT, *words]) == 0
        (sample,) = json.loads(out.read_text())["samples"]
        assert sample["text"].startswith(" a little girl")
        assert capsys.readouterr().out == f"{PROMPT}{sample['text']}\n"


def test_sampling_depends_on_the_seed_alone(hybrid, tmp_path):
    texts = []
    for number, seed in enumerate((1, 1, 2)):
        torch.manual_seed(number)
        out = tmp_path / f"{number}.json"
        words = ["--prompt", "a", "--prompt", "b", "--seed", str(seed), "--out", str(out)]
        assert main(["generate", str(hybrid), *words, "--max-new-tokens", "12"]) == 0
        texts.append([sample["text"] for sample in json.loads(out.read_text())["samples"]])
        assert torch.initial_seed() == number
    assert texts[0] == texts[1] != texts[2]


def test_prompts_come_from_standard_input_line_by_line(project, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo"))
    out = tmp_path / "g.json"
    words = ["--max-new-tokens", "2", "--out", str(out)]
    assert main(["generate", str(project / "neox"), *words]) == 0
    samples = json.loads(out.read_text())["samples"]
    assert [sample["prompt"] for sample in samples] == ["one", "two"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temperature", "-1"], "--temperature -1.0: allowed is 0 or more"),
        (["--top-p", "0"], "--top-p 0.0: allowed is above 0"),
        (["--num-beams", "0"], "--num-beams 0: allowed is 1 or more"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0: allowed is 1 or more"),
    ],
)
def test_generate_refuses_settings_that_mean_nothing(capsys, words, message):
    assert main(["generate", "nowhere", "--prompt", "x", *words]) == 2
    assert message in capsys.readouterr().err


def test_no_prompt_at_all_is_an_error(project, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["generate", str(project / "neox")]) == 2
    assert "There is no prompt" in capsys.readouterr().err


# prune


def test_a_pruned_hybrid_computes_what_the_mixture_without_small_weights_does(
    project, hybrid, tmp_path, capsys
):
    out = tmp_path / "pruned"
    assert main(["prune", str(hybrid), "--threshold", "0.05", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "drops component 1 in block 1 (weight 0.0100)" in printed
    whole = AutoModelForCausalLM.from_pretrained(hybrid)
    pruned = AutoModelForCausalLM.from_pretrained(out)
    assert f"{whole.num_parameters():,} -> {pruned.num_parameters():,}" in printed
    assert pruned.num_parameters() < whole.num_parameters()
    assert pruned.config.components[1].num_hidden_layers == 1  # of three; two were block 1
    whole.set_mixture(torch.tensor([[1.0, 0.0], [0.3, 0.7]]))
    with torch.no_grad():
        assert (whole(IDS).logits - pruned(IDS).logits).abs().max() < 1e-5
    assert AutoTokenizer.from_pretrained(out).vocab_size == 300
    assert "Pruned (weights below 0.05)" in (out / "README.md").read_text()
    record = json.loads((out / "prune.json").read_text())
    assert record["parameters"] == [m.num_parameters() for m in (whole, pruned)]


def test_a_component_whose_head_alone_is_read_loses_its_layers(hybrid, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(hybrid)
    model.set_mixture(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), head=torch.tensor([0.4, 0.6]))
    model.save_pretrained(tmp_path / "own-head")
    AutoTokenizer.from_pretrained(hybrid).save_pretrained(tmp_path / "own-head")
    words = ["--one-hot", "--out", str(tmp_path / "pruned")]
    assert main(["prune", str(tmp_path / "own-head"), *words]) == 0
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    # One layer stays, as a model without any does not load; it never runs.
    assert [c.num_hidden_layers for c in pruned.config.components] == [4, 1]
    model.set_mixture(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), head=torch.tensor([0.0, 1.0]))
    with torch.no_grad():
        assert (model(IDS).logits - pruned(IDS).logits).abs().max() < 1e-5


def test_a_refit_mends_a_path_that_switches_component(project, hybrid, tmp_path, capsys):
    recipe = str(project / "recipes" / "small.yaml")
    refit = ["--data", recipe, "--refit-tokens", "2048"]
    for name, words in (("plain", []), ("refitted", refit)):
        out = str(tmp_path / name)
        assert main(["prune", str(hybrid), "--one-hot", "--out", out, *words]) == 0
        assert ("were not refitted" in capsys.readouterr().err) == (name == "plain")
    plain, refitted = (AutoModelForCausalLM.from_pretrained(tmp_path / n) for n in
                       ("plain", "refitted"))  # fmt: skip
    assert torch.equal(plain.mixture, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    after = refitted.model.translators.boundaries[1]["0_to_1"].weight
    before = plain.model.translators.boundaries[1]["0_to_1"].weight
    assert not torch.equal(before, after)


def test_prune_replaces_only_what_it_wrote(project, hybrid, tmp_path, capsys):
    out, own = tmp_path / "out", str(tmp_path / "out")
    assert main(["prune", str(hybrid), "--one-hot", "--out", own, "--dry-run"]) == 0
    assert not out.exists()
    for words in (["--one-hot"], ["--threshold", "0.05"]):
        assert main(["prune", str(hybrid), *words, "--out", own]) == 0
    assert "replaced" in capsys.readouterr().out
    assert json.loads((out / "prune.json").read_text())["threshold"] == 0.05
    before = snapshot(project)
    for other, message in ((hybrid, "is the model that is read"), (project / "neox", "not empty")):
        assert main(["prune", str(hybrid), "--one-hot", "--out", str(other)]) == 2
        assert message in capsys.readouterr().err
    assert snapshot(project) == before


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("hybrid", [], "--out is missing"),
        ("hybrid", ["--out", "x", "--threshold", "0.001"], "The smallest is 0.0100: give a larger"),
        ("hybrid", ["--out", "x", "--threshold", "2"], "give a weight from 0 to below 1"),
        ("hybrid", ["--out", "x", "--set", "seed=1"], "--set is for --data"),
        ("hybrid", ["--out", "x", "--threshold", "0.1", "--one-hot"], "not allowed with"),
        ("neox", ["--out", "x"], "holds a gpt_neox model, not a hybrid"),
        ("nowhere", ["--out", "x"], "nowhere does not exist"),
    ],
)
def test_prune_says_what_is_wrong(project, hybrid, monkeypatch, capsys, model, words, message):
    monkeypatch.chdir(project)
    assert main(["prune", model, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (project / "x").exists()


def test_prune_tells_an_even_mixture_from_a_one_hot_one(project, tmp_path, capsys):
    words = [f"--component={project / name}" for name in ("neox", "mamba")]
    assert main(["build", *words, "--out", str(tmp_path / "even")]) == 0
    capsys.readouterr()
    assert main(["prune", str(tmp_path / "even"), "--out", str(tmp_path / "x")]) == 2
    assert "The smallest is 0.5000" in capsys.readouterr().err
