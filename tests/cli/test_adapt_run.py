"""The verb that fine-tunes by several methods: dry runs, a whole run, errors before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaConfig, RobertaConfig

from manticore.cli.main import main
from manticore.config.plain import to_plain
from tests.tuning.tiny_recipes import METHODS, plain_recipe, recipe_of, save_model, sums, write_rows


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny model and forty sums."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", sums(40))
    return tmp_path


def write(folder: Path, **changes: Any) -> list[str]:
    """Write a recipe of a second; return the command that runs it."""
    model = {"model": {"path": "./model", "licence": "MIT"}}
    plain = {**plain_recipe(folder, folder, rates={}), **model, **changes}
    if "data" not in changes:
        plain["data"] = {**plain["data"], "sources": [{"path": "./rows.jsonl", "licence": "CC0"}]}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(plain))
    return ["adapt", "run", "tiny.yaml"]


# A whole run


def test_a_run_writes_table_report_and_models_with_cards(folder, capsys) -> None:
    labels = [{**method, "label": f"<b>{method['label']}"} for method in METHODS]
    command = write(folder, methods=labels)
    assert main([*command, "--seeds", "0,1", "--out", "run", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "<b>MoRe" in said
    assert "before fine-tuning" in said
    assert "one standard deviation" in said

    result = json.loads((folder / "run" / "result.json").read_text())
    assert result["command"] == "manticore adapt run tiny.yaml --seeds 0,1 --out run"
    assert [row["seeds"] for row in result["rows"]] == [[0, 1]] * 3
    assert result["data"]["splits"]["test"]["rows"] > 0
    assert result["untouched"]["loss"] > 0
    table = (folder / "run" / "table.md").read_text()
    assert table.startswith("| method | nats | exact match | trained |")

    page = (folder / "run" / "report.html").read_text()
    assert "&lt;b&gt;MoRe" in page
    assert "<b>MoRe" not in page
    assert "<script" not in page
    assert "model on instruction data; every training is " in page
    assert page.count("<svg") == 3  # parameters, memory and time
    assert page.count('class="state"') == len(result["goals"])

    for row in result["rows"]:
        card = (folder / "run" / "models" / row["id"] / "README.md").read_text()
        _, front, body = card.split("---\n", 2)
        fields = yaml.safe_load(front)
        assert fields["license"] == "mit"
        assert fields["library_name"] == ("transformers" if row["id"] == "full" else "peft")
        assert "./rows.jsonl: CC0" in body
        assert result["command"] in body
        assert body.count(result["goals"][0]["sentence"]) == 1
        assert ("import manticore" in body) == (row["id"] == "more")

    (folder / "run" / "report.html").unlink()  # a kill between the result and its page
    assert main([*command, "--seeds", "0,1", "--out", "run", "--quiet"]) == 0
    assert (folder / "run" / "report.html").read_text() == page


# Dry runs


def test_a_dry_run_counts_and_writes_nothing(folder, capsys) -> None:
    command = write(folder)
    before = sorted(path.name for path in folder.iterdir())
    assert main([*command, "--dry-run", "--seeds", "0,1,2"]) == 0
    said = capsys.readouterr().out
    # Two layers of 16 channels: attention 16 to 48 and 16 to 16, MLP 16 to 32 and back. Two
    # numbers for every input and output of each, for LoRA of rank 2 and for MoRe 2 x 2.
    each = 2 * 2 * ((16 + 48) + (16 + 16) + (16 + 32) + (32 + 16))
    assert f"lora: {each:,} of " in said
    assert f"more: {each:,} of " in said
    assert "trainings: 9; each" in said
    assert "would write: runs/tiny/result.json" in said
    for rates, count in (
        ("0.001,0.003,0.01", "9, and 2 more at most"),
        ("0.001,0.01", "6; each"),  # two rates are tried as they are
    ):
        assert main([*command, "--dry-run", f"rates.rates=[{rates}]"]) == 0
        assert f"trainings: {count}" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_papers_encoder_and_decoder_are_counted_from_their_configurations(
    folder, capsys
) -> None:
    """RoBERTa-large and Llama 7B: sizes alone, no weights; counts that the papers print."""
    large = RobertaConfig(
        vocab_size=50265, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
        intermediate_size=4096, max_position_embeddings=514, type_vocab_size=1,
    )  # fmt: skip
    large.save_pretrained(folder / "roberta-large")
    LlamaConfig().save_pretrained(folder / "llama-7b")
    assert main(["adapt", "run", "recipes/more/cola.yaml", "--dry-run",
                 f"model.path={folder / 'roberta-large'}"]) == 0  # fmt: skip
    said = capsys.readouterr().out
    head = 1024 * 1024 + 1024 + 1024 * 2 + 2  # the new classifier, trained whole
    counts = {"more-paper": 589_824, "lora-8": 1_179_648, "more-quarter": 294_912}
    for row, adapter in counts.items():
        assert f"{row}: {adapter + head:,} of " in said
    # Blocks of 8, scales and biases; PEFT makes two factors one where its CUDA kernel is missing.
    boft = [72 * (factors * 128 * 8 * 8 + 2 * 1024) + head for factors in (1, 2)]
    assert any(f"boft: {count:,} of " in said for count in boft)
    assert main(["adapt", "run", "recipes/more/boolq.yaml", "--dry-run",
                 f"model.path={folder / 'llama-7b'}"]) == 0  # fmt: skip
    said = capsys.readouterr().out
    for row, adapter in {"lora-32": 56_098_816, "more-paper": 3_145_728}.items():
        assert f"{row}: {adapter:,} of " in said


def test_a_dry_run_without_a_hub_leaves_the_parameters_open(folder, capsys, monkeypatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def no_hub(*_: Any, **__: Any) -> None:
        pytest.fail("a dry run asked the hub")

    monkeypatch.setattr("socket.create_connection", no_hub)
    monkeypatch.setattr("socket.getaddrinfo", no_hub)
    command = write(folder, model={"path": "nobody/has-this"})
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "parameters: unknown, the configuration of nobody/has-this is not on this mach" in said
    assert "`hf download nobody/has-this config.json` brings it" in said


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": [{"id": "a", "label": "A", "method": "lorra"}]}, "Did you mean 'lora'"),
        (
            {"methods": [{"id": "a", "label": "A", "method": "more", "settings": {"nblock": 2}}]},
            "more has no setting 'nblock'. Did you mean 'nblocks'",
        ),
        (
            {"methods": [{"id": "a", "label": "A", "method": "lora", "settings": {"r": 0}}]},
            "lora",
        ),
        (
            {"methods": [{"id": "a", "label": "A", "method": "full", "settings": {"r": 1}}]},
            "Full fine-tuning has no settings",
        ),
        (
            {"methods": [{"id": "a", "method": "lora", "settings": {"target_modules": ["x"]}}]},
            "Give them as `targets`",
        ),
        ({"methods": METHODS[:1] * 2}, "methods need ids, each once"),
        ({"goals": [{"row": "more", "against": "dora"}]}, "A goal names dora, which is no method"),
        ({"train": {"steps": 3, "epochs": 1}}, "set exactly one of them"),
        ({"train": {}}, "set exactly one of them"),
        ({"evaluate": {"metrics": ["matthews"]}}, "matthews cannot be measured on instruction"),
        ({"rates": {"by": "exact-match"}, "evaluate": {"metrics": ["loss"]}}, "not among evaluate"),
        ({"evaluate": {"metrics": ["loss"], "answer_pattern": "(a)(b)"}}, "has 2 groups"),
        ({"model": {"path": "./absent"}}, "model.path ./absent: there is no folder"),
        ({"methods": [{**METHODS[0], "id": "../up"}]}, "The id '../up' among methods"),
        ({"methods": [{**METHODS[0], "method": "prompt_tuning"}]}, "has no target_modules"),
        ({"evaluate": {"batch_size": 0}}, "evaluate.batch_size=0: at least 1 is needed"),
        ({"train": {"steps": 2, "grad_accumulation": 0}}, "grad_accumulation=0: at least 1"),
        ({"train": {"steps": 2, "weight_decay": -1.0}}, "weight_decay=-1: give a number"),
        ({"train": {"steps": 2, "beta2": 2.0}}, "beta2=2: give a number of at least 0"),
        ({"train": {"steps": -2, "epochs": 1}}, "set exactly one of them"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_refused_before_any_work(folder, capsys, changes, message) -> None:
    goals = [] if "methods" in changes else [{"row": "more", "against": "lora"}]
    command = write(folder, **{"goals": goals, **changes})
    assert main([*command, "--dry-run"]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("seeds", "message"), [("0,x", "give whole numbers like 0,1,2"), ("1,1", "names a seed twice")]
)
def test_seeds_are_whole_numbers_each_once(folder, capsys, seeds, message) -> None:
    assert main([*write(folder), "--dry-run", "--seeds", seeds]) == 2
    assert message in capsys.readouterr().err


def test_what_no_method_can_adapt_is_named_before_training(folder, capsys) -> None:
    method = {"id": "a", "label": "A", "method": "more", "targets": ["q_prj"]}
    assert main([*write(folder, methods=[method], goals=[]), "--dry-run"]) == 2
    assert "more cannot adapt GPTNeoXForCausalLM" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"methods": [METHODS[1], {**METHODS[2], "targets": ["dens"]}]},
            "Closest names: 'dens': dense",
        ),
        ({"methods": METHODS[:1], "model": {"path": "./model", "quantization": "4bit"}}, "Leave"),
        (
            {"data": {"format": "text", "sources": [{"path": "./absent.txt"}]},
             "evaluate": {"metrics": ["loss"]}},
            "There is no file or folder",
        ),
    ],
)  # fmt: skip
def test_a_run_that_cannot_begin_leaves_no_folder(folder, capsys, changes, message) -> None:
    command = write(folder, goals=[], **changes)
    assert main([*command, "--out", "run", "--quiet"]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_a_recipe_survives_being_written_out(folder) -> None:
    recipe = recipe_of(yaml.safe_load((folder / write(folder)[2]).read_text()))
    assert recipe_of(to_plain(recipe)) == recipe
