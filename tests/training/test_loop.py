"""What `train` does to a model, a batch and a log."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from manticore.training import ParameterGroup, TrainConfig, train
from manticore.training.batches import count_scored, split_batch
from tests.training.toy import batch_at, toy_config, toy_loss, toy_model


class TinyLanguageModel(nn.Module):
    """Predicts the next token from the present one, with the loss a Hugging Face model has."""

    def __init__(self, vocab_size: int = 7) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)
        with torch.no_grad():
            self.table.weight.copy_(torch.linspace(-1, 1, vocab_size**2).view(vocab_size, -1))

    def forward(self, input_ids: Tensor, labels: Tensor) -> SimpleNamespace:
        logits = self.table(input_ids)[:, :-1].flatten(0, 1)
        return SimpleNamespace(
            loss=nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100)
        )


def token_batch(step: int) -> dict[str, Tensor]:
    """Four rows with a different number of scored labels each; one row has none."""
    ids = (torch.arange(4)[:, None] + torch.arange(6) + step) % 7
    labels = ids.clone()
    for row, unscored in enumerate((1, 3, 6, 0)):
        labels[row, :unscored] = -100
    return {"input_ids": ids, "labels": labels}


def test_the_loss_really_falls():
    result = train(toy_model(), batch_at, toy_config(steps=200), loss_fn=toy_loss)
    # The target is a sine of variance about 0.5; the model must explain much of it.
    assert sum(result.losses[:5]) / 5 > 0.4
    assert sum(result.losses[-20:]) / 20 < 0.25
    assert result.steps == len(result.losses) == 200
    assert result.final_loss == result.losses[-1]


def test_one_plain_step_equals_torch_written_out():
    model, twin = TinyLanguageModel(), TinyLanguageModel()
    config = TrainConfig(steps=1, lr=0.1, warmup_steps=0, clip=0.5, weight_decay=0.3)
    result = train(model, token_batch, config)
    optimizer = torch.optim.AdamW(
        twin.parameters(), lr=0.1, betas=(0.9, 0.95), weight_decay=0.3, foreach=False
    )
    loss = twin(**token_batch(0)).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
    optimizer.step()
    assert abs(result.final_loss - float(loss.detach())) < 1e-6
    torch.testing.assert_close(model.table.weight, twin.table.weight, rtol=0, atol=1e-6)
    assert result.tokens == 24


@pytest.mark.parametrize("pieces", [2, 3, 4])
def test_accumulated_pieces_equal_the_whole_batch(pieces: int):
    # Rows differ in scored labels, so a plain mean over pieces would be wrong.
    runs = []
    for count in (1, pieces):
        model = TinyLanguageModel()
        config = TrainConfig(steps=5, lr=0.05, warmup_steps=1, grad_accumulation=count)
        runs.append((model, train(model, token_batch, config)))
    (whole, expected), (model, result) = runs
    torch.testing.assert_close(model.table.weight, whole.table.weight, rtol=0, atol=1e-6)
    assert result.losses == pytest.approx(expected.losses, abs=1e-6)
    assert result.tokens == expected.tokens


def test_bf16_runs_and_keeps_weights_in_float32():
    model = toy_model()
    seen = []

    def loss_fn(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        seen.append((batch["x"] @ batch["x"].T).dtype)
        return toy_loss(module, batch)

    result = train(model, batch_at, toy_config(precision="bf16", steps=30), loss_fn=loss_fn)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(result.losses[-5:]) < sum(result.losses[:5])
    exact = train(toy_model(), batch_at, toy_config(steps=30), loss_fn=toy_loss)
    assert exact.losses != result.losses
    assert exact.final_loss == pytest.approx(result.final_loss, abs=0.05)


def test_the_model_comes_back_as_it_was_but_for_its_weights():
    model = toy_model()
    model.norm.eval()
    frozen = model.frozen.weight.clone()
    forward = model.forward
    for precision in ("fp32", "bf16"):
        config = toy_config(precision=precision, steps=3)
        train(model, batch_at, config, loss_fn=toy_loss, parameters=[model.head.weight])
    assert model.forward == forward
    assert not model.norm.training
    assert model.dropout.training
    assert torch.equal(model.frozen.weight, frozen)
    assert model.first.weight.requires_grad
    assert not model.frozen.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_the_callers_random_stream_is_left_alone():
    before = torch.get_rng_state()
    train(toy_model(), batch_at, toy_config(steps=2), loss_fn=toy_loss)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_decides_dropout():
    losses = [
        train(toy_model(), batch_at, toy_config(steps=3), loss_fn=toy_loss, seed=seed).losses
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_only_the_given_groups_move_each_at_its_own_rate():
    model, twin = toy_model(), toy_model()
    groups = {
        "head": ParameterGroup(parameters=[model.head.bias], lr_scale=0.5),
        "first": ParameterGroup(parameters=[model.first.bias]),
    }
    config = toy_config(steps=1, lr=0.1, warmup_steps=0)
    result = train(model, batch_at, config, loss_fn=toy_loss, parameters=groups)
    moved = {
        name: float((p - q).detach().abs().max())
        for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True)
    }
    # Adam's first step is the learning rate times the sign of the gradient.
    assert moved.pop("head.bias") == pytest.approx(0.05, abs=1e-5)
    assert moved.pop("first.bias") == pytest.approx(0.1, abs=1e-5)
    assert set(moved.values()) == {0.0}
    assert result.parameters == 9


def test_log_records_count_finished_steps_and_evaluations_see_eval_mode():
    records: list[dict] = []
    modes: list[tuple[bool, bool]] = []

    def eval_fn(model: nn.Module) -> dict[str, float]:
        modes.append((model.training, torch.is_grad_enabled()))
        return {"loss": [3.0, 1.0, 2.0][len(modes) - 1], "bits": 0.5}

    result = train(
        toy_model(),
        batch_at,
        toy_config(steps=5, log_every=2),
        loss_fn=toy_loss,
        name="probe",
        log=records.append,
        eval_fn=eval_fn,
        eval_every=2,
    )
    assert [r["step"] for r in records if "loss" in r] == [2, 4, 5]
    assert {r["stage"] for r in records} == {"probe"}
    assert records[0]["loss"] == result.losses[1]
    assert {"lr", "grad_norm", "tokens", "seconds"} <= records[0].keys()
    assert [(r["step"], r["eval_loss"]) for r in records if "eval_loss" in r] == [
        (2, 3.0),
        (4, 1.0),
        (5, 2.0),
    ]
    assert set(modes) == {(False, False)}
    assert (result.best_loss, result.best_step) == (1.0, 4)
    assert result.evaluations[0] == {"step": 2, "loss": 3.0, "bits": 0.5}


def test_a_resumed_run_says_how_many_steps_are_done(tmp_path):
    starts: list[int] = []

    def stopping(step: int) -> dict[str, Tensor]:
        if step == 9 and len(starts) == 1:
            raise RuntimeError("gone")
        return batch_at(step)

    def go() -> None:
        train(
            toy_model(),
            stopping,
            toy_config(),
            folder=tmp_path,
            loss_fn=toy_loss,
            on_start=starts.append,
        )

    with pytest.raises(RuntimeError, match="gone"):
        go()
    go()
    assert starts == [0, 8]


def test_scored_items_leave_out_the_first_position_and_the_ignored():
    assert count_scored(token_batch(0)) == 5 + 3 + 0 + 5
    assert count_scored({"labels": torch.tensor([1, -100, 0])}) == 2
    assert count_scored({"x": torch.zeros(3, 2)}) == 3


def test_pieces_of_a_batch_cover_its_rows_once():
    batch = {"x": torch.arange(7), "scale": 2.0}
    pieces = split_batch(batch, 3)
    assert torch.equal(torch.cat([p["x"] for p in pieces]), batch["x"])
    assert [p["scale"] for p in pieces] == [2.0] * 3
    with pytest.raises(ValueError, match="7 rows cannot be cut into 8 pieces"):
        split_batch(batch, 8)


def test_bad_settings_name_what_is_allowed():
    with pytest.raises(ValueError, match="Known: linear, cosine, constant"):
        toy_config(schedule="lin")
    with pytest.raises(ValueError, match="Known: fp32, bf16"):
        toy_config(precision="fp16")
    with pytest.raises(ValueError, match="steps=0"):
        toy_config(steps=0)
    with pytest.raises(ValueError, match="lr=nan"):
        toy_config(lr=float("nan"))


def test_what_cannot_be_trained_is_refused_before_the_first_batch():
    def never(step: int) -> dict[str, Tensor]:
        raise AssertionError("no batch may be asked for")

    with pytest.raises(ValueError, match="is empty"):
        train(toy_model().requires_grad_(False), never, toy_config(), loss_fn=toy_loss)
    stray = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="1 parameters that are not in the model"):
        train(toy_model(), never, toy_config(), loss_fn=toy_loss, parameters=[stray])


def test_a_model_without_a_loss_or_a_batch_without_labels_is_an_error():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="Linear returned no loss"):
        train(model, lambda step: {"input": torch.ones(1, 2)}, toy_config())
    unscored = {
        "input_ids": torch.zeros(2, 3, dtype=torch.long),
        "labels": torch.full((2, 3), -100),
    }
    with pytest.raises(ValueError, match="batch of step 0 has nothing to score"):
        train(TinyLanguageModel(), lambda step: unscored, toy_config())


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, run_python):
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, torch\n"
        "from manticore.training import TrainConfig, train\n"
        "from tests.training.test_loop import TinyLanguageModel, token_batch\n"
        "model = TinyLanguageModel()\n"
        "config = TrainConfig(steps=6, lr=0.05, warmup_steps=1, checkpoint_every=2)\n"
        "batch = lambda s: {k: v[[0, 1, 3]] for k, v in token_batch(s).items()}\n"
        "result = train(model, batch, config, folder=sys.argv[1], final_only=True)\n"
    )
    run_python(str(script), str(tmp_path / "one"))
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    run_python(*launch, str(script), str(tmp_path / "two"))
    from manticore.training import load_weights

    models = [TinyLanguageModel(), TinyLanguageModel()]
    for model, name in zip(models, ("one", "two"), strict=True):
        load_weights(tmp_path / name / "final", {"model": model})
    torch.testing.assert_close(models[0].table.weight, models[1].table.weight, rtol=0, atol=1e-6)
    assert not torch.equal(models[0].table.weight, TinyLanguageModel().table.weight)
