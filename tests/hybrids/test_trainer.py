"""Hugging Face's Trainer trains a hybrid, saves it and goes on from a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from manticore import ManticoreForCausalLM
from manticore.hybrids.modeling_classification import ManticoreForSequenceClassification
from tests.hybrids.pairs import build, ids_for, members, random_rows

SEQ_LEN = 12


def rows(count: int = 16, unscored: int = 3) -> list[dict[str, torch.Tensor]]:
    """Sequences that count upwards, so that there is something to learn; the first are unscored."""
    found = []
    for start in range(count):
        ids = 3 + (start + torch.arange(SEQ_LEN)) % 50
        labels = ids.clone()
        labels[:unscored] = -100
        found.append({"input_ids": ids, "labels": labels})
    return found


def hybrid(mixing: str = "streams") -> ManticoreForCausalLM:
    model = build(members(2), num_blocks=2, mixing=mixing)
    model.set_mixture(random_rows(2, 2))
    return model


def trainer(model: Any, folder: Path, **options: Any) -> Trainer:
    settings = {
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "max_steps": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
    }
    arguments = TrainingArguments(output_dir=str(folder), **{**settings, **options})
    return Trainer(model=model, args=arguments, train_dataset=rows())


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize("mixing", ["streams", "shared"])
def test_the_loss_falls_and_every_part_moves(mixing: str, tmp_path: Path) -> None:
    model = hybrid(mixing)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run = trainer(model, tmp_path)
    run.train()
    assert losses(run)[-1] < losses(run)[0] - 0.5
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_accumulated_gradients_weigh_every_scored_token_alike(tmp_path: Path) -> None:
    # Unequal numbers of scored tokens: averaging the micro-batches' means would be wrong.
    data = rows(4, unscored=0)
    for index, row in enumerate(data):
        row["labels"][: 2 + 3 * index] = -100
    seen = []

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
            seen.append({n: p.grad.clone() for n, p in model.named_parameters()})

    for size, accumulation in ((4, 1), (1, 4)):
        run = trainer(
            hybrid(),
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            max_grad_norm=0.0,
        )
        run.train_dataset = data
        run.add_callback(Gradients())
        run.train()
    whole, pieces = seen
    for name, gradient in whole.items():
        scale = gradient.abs().max().clamp(min=1e-3)
        assert (pieces[name] - gradient).abs().max() < 1e-4 * scale, name


def test_the_loss_takes_the_number_of_items_in_the_batch() -> None:
    model = hybrid()
    ids = ids_for()
    labels = ids.clone()
    labels[:, :4] = -100
    scored = int((labels[:, 1:] != -100).sum())
    mean = model(ids, labels=labels).loss
    double = model(ids, labels=labels, num_items_in_batch=2 * scored).loss
    torch.testing.assert_close(double, mean / 2)


def test_resumed_training_equals_uninterrupted(tmp_path: Path) -> None:
    whole = trainer(hybrid(), tmp_path / "whole", save_strategy="steps", save_steps=3, max_steps=6)
    whole.train()
    folder = tmp_path / "whole" / "checkpoint-3"
    assert not list(folder.glob("pytorch_model*"))
    resumed = trainer(ManticoreForCausalLM.from_pretrained(folder), tmp_path / "on", max_steps=6)
    resumed.train(resume_from_checkpoint=str(folder))
    assert resumed.state.global_step == 6
    for (name, one), other in zip(
        whole.model.named_parameters(), resumed.model.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0, msg=name)
    saved = ManticoreForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoint-6")
    assert torch.equal(saved(ids_for()).logits, whole.model.eval()(ids_for()).logits)


def test_evaluation_and_a_classifier_work_too(tmp_path: Path) -> None:
    model = ManticoreForSequenceClassification.from_components(members(2), num_labels=2)
    data = [{"input_ids": row["input_ids"], "labels": i % 2} for i, row in enumerate(rows())]
    run = trainer(model, tmp_path, learning_rate=2e-3, max_steps=12)
    run.train_dataset = run.eval_dataset = data
    before = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] < before


def test_a_frozen_mixture_stays_where_it_is(tmp_path: Path) -> None:
    model = hybrid()
    model.freeze_mixture()
    before = model.mixture.clone()
    trainer(model, tmp_path, max_steps=2, gradient_checkpointing=True).train()
    assert torch.equal(model.mixture, before)
