"""The verb that tells a recipe's memory: its numbers against real runs, its advice, its errors."""

import json
from typing import Any

import pytest
import torch
import yaml

from manticore.cli.main import main
from manticore.cli.plan import Room, parse_bytes, size_text
from manticore.cli.plan_changes import Most
from manticore.cli.plan_ladders import ladders
from manticore.config import find_recipe, load_recipe
from manticore.config.adapter_recipe import AdaptRecipe
from manticore.config.recipes import HybridRecipe
from manticore.evaluation.language import causal_loss
from manticore.evaluation.memory_plan import Memory, Stage, text_batch
from manticore.hybrids.assembly import build_hybrid, load_tokenizers
from manticore.hybrids.memory_stages import hybrid_stages
from manticore.hybrids.trials import train_config
from manticore.training import train
from manticore.tuning.batches import collate
from manticore.tuning.evaluate import tuning_loss
from manticore.tuning.memory_stages import example_row, tuning_stages
from manticore.tuning.models import shell_model
from tests.conversion.students import plain_recipe, teacher_folder
from tests.evaluation.test_memory_plan import TOLERANCE, allocated

HYBRID = "recipes/hybrids/quickstart.yaml"
ADAPT = "recipes/more/maths.yaml"


def plan_of(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, dict[str, Any]]:
    status = main(["plan", *words, "--json", "--quiet"])
    return status, json.loads(capsys.readouterr().out)


def own_storage(model: Any) -> Any:
    """Weights that a file was mapped for are not the allocator's; these are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def test_a_hybrid_recipe_takes_what_its_fine_tuning_allocates():
    changes = ("finetune.batch_size=2", "data.seq_len=48", "finetune.grad_accumulation=2")
    recipe, base = load_recipe(HybridRecipe, HYBRID, changes), find_recipe(HYBRID).parent
    stages = {stage.name: stage for stage in hybrid_stages(recipe, base)}
    memory = stages["fine-tuning hybrid"].measure()
    tokenizer, others = load_tokenizers(recipe, base)
    loaded = build_hybrid(recipe, base, others, tokenizer)
    loaded.freeze_mixture()

    def work() -> None:
        train(
            own_storage(loaded),
            lambda step: text_batch(2, 48),
            train_config(recipe.finetune, steps=2),
            parameters=[p for p in loaded.parameters() if p.requires_grad],
            loss_fn=causal_loss,
            progress=False,
        )

    assert memory.total == pytest.approx(allocated(work), rel=TOLERANCE)


def test_an_adapter_recipe_takes_what_lora_allocates_and_reads_no_weight_to_say_so(monkeypatch):
    def read(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("safetensors.safe_open", read)
    monkeypatch.setattr(torch, "load", read)
    changes = ("train.batch_size=2", "data.seq_len=48")
    recipe, base = load_recipe(AdaptRecipe, ADAPT, changes), find_recipe(ADAPT).parent
    method = next(method for method in recipe.methods if method.method == "lora")
    stages = {stage.name: stage for stage in tuning_stages(recipe, base)}
    memory = stages[f"training by {method.id}"].measure()

    def work() -> None:
        model = shell_model(recipe, method, base).float()
        batch = collate([example_row(recipe, 48), example_row(recipe, 47)], pad=0)
        train(
            model,
            lambda step: batch,
            train_config(recipe.train, steps=2),
            parameters=[p for p in model.parameters() if p.requires_grad],
            loss_fn=tuning_loss,
            progress=False,
        )

    assert memory.total == pytest.approx(allocated(work), rel=TOLERANCE)


def test_what_does_not_fit_gets_advice_and_the_advice_holds(capsys, tmp_path):
    small = ["data.seq_len=32", "model.num_hidden_layers=1", "train.batch_size=64"]
    words = ["recipes/zoo/mamba-maths.yaml", *small]
    status, plan = plan_of(capsys, *words, "--memory", "60MB", "--out", str(tmp_path / "plan.json"))
    assert (status, plan["verdict"]) == (1, "does not fit")
    assert json.loads((tmp_path / "plan.json").read_text()) == plan
    for stage in plan["stages"]:
        parts = ("weights", "gradients", "optimizer", "activations", "cache")
        assert sum(stage[part] for part in parts) == stage["total"] <= plan["total"]
    first = plan["changes"][0]
    assert first["keys"][0].startswith("train.grad_accumulation=")
    assert first["total"] <= 60e6
    status, changed = plan_of(capsys, *words, *first["keys"], "--memory", "60MB")
    assert status == 0
    assert changed["total"] == first["total"]
    assert changed["changes"] == []


def test_a_transfer_recipe_is_planned_by_stage_and_its_advice_holds(capsys, tmp_path):
    rows = [
        {"id": "scratch", "copy": "scratch"},
        {"id": "told", "copy": "all", "distil": True},
        {"id": "alike", "copy": "all", "distil": True, "calibrate": False},
    ]
    plain = plain_recipe(rows, samples={"prompts": ["1 + 1"], "max_new_tokens": 4})
    recipe = teacher_folder(tmp_path) / "tiny.yaml"
    recipe.write_text(json.dumps(plain))
    words = [str(recipe), "train.batch_size=320", "--memory", "300MB"]
    status, plan = plan_of(capsys, *words)
    names = [stage["name"] for stage in plan["stages"]]
    assert {"training scratch", "distilling told and 1 alike", "samples"} <= set(names)
    assert (status, plan["verdict"]) == (1, "does not fit")
    pieces = plan["changes"][0]
    assert pieces["keys"] == ["train.grad_accumulation=2"]
    assert pieces["total"] <= 300e6
    status, changed = plan_of(capsys, *words, *pieces["keys"])
    assert (status, changed["total"]) == (0, pieces["total"])


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "-"), (999, "999 B"), (1000, "1 kB"), (999_400_000, "999 MB"), (999_900_000, "1 GB")],
)
def test_sizes_have_three_digits_and_never_a_power(size, text):
    assert size_text(size) == text


def adapter_recipe(tmp_path, *methods: str, **evaluate: Any) -> str:
    """The maths recipe with other methods, tiny."""
    plain = yaml.safe_load(find_recipe(ADAPT).read_text(encoding="utf-8"))
    base = find_recipe(ADAPT).parent
    plain["model"]["path"] = str((base / plain["model"]["path"]).resolve())
    plain["data"] |= {"seq_len": 16}
    plain["train"] |= {"batch_size": 2}
    plain["evaluate"] |= evaluate
    plain["methods"] = [{"id": name, "label": name, "method": name} for name in methods]
    plain["goals"] = []
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(plain), encoding="utf-8")
    return str(path)


def test_a_method_that_needs_the_weights_is_left_out_and_named(capsys, tmp_path):
    status, plan = plan_of(capsys, adapter_recipe(tmp_path, "boft", "adamss"), "--gpu", "1GB")
    names = [stage["name"] for stage in plan["stages"]]
    assert (status, names) == (0, ["training by boft", "evaluation"])
    assert "adamss computes with the weights" in plan["unknown"]["training by adamss"]


def test_evaluations_that_do_not_fit_get_fewer_rows_before_anything_else(capsys, tmp_path):
    recipe = adapter_recipe(tmp_path, "full", batch_size=256)
    status, plan = plan_of(capsys, recipe, "--gpu", "20MB")
    largest = {stage["name"]: stage["total"] for stage in plan["stages"]}
    assert (status, plan["verdict"]) == (1, "does not fit")
    assert largest["evaluation"] > 20e6
    (key,) = plan["changes"][0]["keys"]
    assert key.startswith("evaluate.batch_size=")
    assert all(key in change["keys"] for change in plan["changes"] if change["keys"])
    _, changed = plan_of(capsys, recipe, key, "--gpu", "20MB")
    assert changed["total"] == plan["changes"][0]["total"] < plan["total"]
    assert {s["name"]: s["verdict"] for s in changed["stages"]}["evaluation"] != "does not fit"


def test_without_a_budget_advice_counts_every_stage_after_the_change(capsys, tmp_path):
    recipe = adapter_recipe(tmp_path, "full", "lora", batch_size=1)
    words = [recipe, "train.batch_size=32"]
    _, plan = plan_of(capsys, *words)
    change = next(c for c in plan["changes"] if "train.grad_accumulation=2" in c["keys"])
    _, changed = plan_of(capsys, *words, *change["keys"], "--gpu", "1GB")
    assert changed["total"] == change["total"]


def test_a_stage_is_measured_once_where_a_change_leaves_it_alone():
    measured = []

    def stage(name: str, depends: str, total: int) -> Stage:
        def measure() -> Memory:
            measured.append(name)
            return Memory(activations=total)

        return Stage(name=name, measure=measure, depends=depends)

    before = {"large": 100, "kept": 60, "small": 10}
    stages = [stage(name, name, total) for name, total in before.items()]
    most = Most({s.name: s.measure() for s in stages}, stages)
    measured.clear()
    changed = [stage("large", "changed", 50), *stages[1:]]
    assert most(changed) == most(changed) == 60
    assert measured == ["large"]
    assert most([stage("large", "again", 20), stage("kept", "again", 30), stages[2]]) == 30
    assert measured == ["large", "large", "kept"]


def test_a_hybrid_is_advised_to_train_adapters_by_a_command():
    recipe = load_recipe(HybridRecipe, HYBRID, ())
    titles = [change.title for ladder in ladders(recipe) for change in ladder]
    assert any("manticore adapt run" in title for title in titles)
    assert not any("default_targets(" in title for title in titles)


def test_memory_is_given_with_a_unit():
    assert parse_bytes("80GB") == 80 * 10**9
    assert parse_bytes("1.5 GiB") == 3 * 2**29
    for wrong in ("80XB", "much", "0GB", "-1GB", "0", "10kb", "1.5"):
        with pytest.raises(ValueError, match=r"no amount of memory|has no unit"):
            parse_bytes(wrong)


def test_an_amount_without_a_unit_is_asked_for_one(capsys):
    assert main(["plan", HYBRID, "--gpu", "80"]) == 2
    said = capsys.readouterr().err
    assert "--gpu 80 has no unit. Write 80GB" in said
    assert "most at one time" not in said


def test_what_fills_the_room_to_within_the_margin_is_tight():
    found = [Room(100, "gpu").verdict(total) for total in (80, 90, 101)]
    assert found == ["fits", "tight", "does not fit"]


def test_on_a_cpu_the_margin_is_as_large_as_the_plan():
    found = [Room(100, "memory").verdict(total) for total in (50, 51, 101)]
    assert found == ["fits", "tight", "does not fit"]


def test_quantized_weights_are_refused_with_what_to_do(capsys):
    assert main(["plan", ADAPT, "model.quantization=4bit"]) == 2
    assert "model.dtype=bf16" in capsys.readouterr().err
