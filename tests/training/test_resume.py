"""A run that was interrupted ends exactly where an uninterrupted one ends."""

from __future__ import annotations

import random
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from manticore.seeds import torch_generator
from manticore.training import LoopState, NonFiniteLossError, build_adamw, run_loop, train
from tests.training import toy
from tests.training.toy import batch_at, flat_checkpoint, toy_config, toy_loss, toy_model


class Killed(Exception):
    pass


def dying_at(step_of_death: int | None):
    def batches(step: int) -> dict[str, Tensor]:
        if step == step_of_death:
            raise Killed
        return batch_at(step)

    return batches


def run(folder: Path, dies_at: int | None = None, **changes):
    model = toy_model()
    result = train(
        model, dying_at(dies_at), toy_config(**changes), folder=folder, loss_fn=toy_loss, seed=3
    )
    return model, result


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, Tensor):
            # Bitwise on one machine; 1e-6 is what is promised.
            torch.testing.assert_close(other[key], value, rtol=0, atol=1e-6, msg=key)
        else:
            assert other[key] == value, key


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    model, result = run(folder)
    return model, result, flat_checkpoint(folder)


DEATHS = random.Random(0).sample(range(23), 6)


@pytest.mark.parametrize("step", [*DEATHS, 0, 22])
def test_resumed_equals_uninterrupted(tmp_path: Path, uninterrupted, step: int):
    expected_model, expected, checkpoint = uninterrupted
    with pytest.raises(Killed):
        run(tmp_path, dies_at=step)
    torch.rand(7)  # the caller's global stream must not matter
    model, result = run(tmp_path)
    assert result.losses == expected.losses
    assert (result.steps, result.tokens) == (expected.steps, expected.tokens)
    assert_same(flat_checkpoint(tmp_path), checkpoint)
    assert_same(dict(model.state_dict()), dict(expected_model.state_dict()))


def test_resumed_many_times_equals_uninterrupted(tmp_path: Path, uninterrupted):
    for step in (3, 5, 11, 12, 21):
        with pytest.raises(Killed):
            run(tmp_path, dies_at=step)
    _, result = run(tmp_path)
    assert result.losses == uninterrupted[1].losses
    assert_same(flat_checkpoint(tmp_path), uninterrupted[2])


def test_a_process_killed_with_sigkill_resumes_exactly(tmp_path: Path, uninterrupted, run_python):
    done = run_python("-m", "tests.training.toy", str(tmp_path), "14", check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "step-000012").is_dir()
    _, result = run(tmp_path)
    assert result.losses == uninterrupted[1].losses
    assert_same(flat_checkpoint(tmp_path), uninterrupted[2])


@pytest.mark.slow
def test_a_process_killed_at_random_moments_resumes_exactly(tmp_path: Path, uninterrupted):
    import os
    import sys
    import time

    rng, code = random.Random(5), None
    command = [sys.executable, "-m", "tests.training.toy", str(tmp_path), "-1"]
    root = Path(toy.__file__).resolve().parents[2]
    for _ in range(10):
        process = subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
        while process.poll() is None and not list(tmp_path.glob("step-*")):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        code = process.wait()
        if code == 0:
            break
    _, result = run(tmp_path)
    assert result.losses == uninterrupted[1].losses
    assert_same(flat_checkpoint(tmp_path), uninterrupted[2])


def test_sigterm_writes_a_checkpoint_and_exits_with_143(tmp_path: Path, uninterrupted, capsys):
    def batches(step: int) -> dict[str, Tensor]:
        if step == 9:
            signal.raise_signal(signal.SIGTERM)
        return batch_at(step)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        train(toy_model(), batches, toy_config(), folder=tmp_path, loss_fn=toy_loss, seed=3)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopped after step 10 of 23" in capsys.readouterr().err
    assert (tmp_path / "step-000010").is_dir()
    _, result = run(tmp_path)
    assert result.losses == uninterrupted[1].losses


def test_ctrl_c_writes_a_checkpoint_first(tmp_path: Path):
    def batches(step: int) -> dict[str, Tensor]:
        if step == 5:
            signal.raise_signal(signal.SIGINT)
        return batch_at(step)

    with pytest.raises(KeyboardInterrupt):
        train(toy_model(), batches, toy_config(), folder=tmp_path, loss_fn=toy_loss)
    assert (tmp_path / "step-000006").is_dir()


def test_a_finished_run_is_read_back_not_run_again(tmp_path: Path, uninterrupted):
    run(tmp_path)
    model, result = run(tmp_path, dies_at=0)
    assert result.losses == uninterrupted[1].losses
    assert_same(dict(model.state_dict()), dict(uninterrupted[0].state_dict()))


def test_final_only_keeps_weights_and_drops_moments(tmp_path: Path, uninterrupted):
    train(
        toy_model(),
        batch_at,
        toy_config(),
        folder=tmp_path,
        loss_fn=toy_loss,
        seed=3,
        final_only=True,
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["final", "result.json"]
    model, result = run(tmp_path, dies_at=0)
    assert result.losses == uninterrupted[1].losses
    assert_same(dict(model.state_dict()), dict(uninterrupted[0].state_dict()))


def test_a_lost_last_checkpoint_is_made_again(tmp_path: Path, uninterrupted):
    run(tmp_path)
    (tmp_path / "step-000023" / "weights.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="step-000023 is damaged"):
        _, result = run(tmp_path)
    assert result.losses == uninterrupted[1].losses
    assert_same(flat_checkpoint(tmp_path), uninterrupted[2])


def test_a_run_killed_between_its_last_checkpoint_and_its_result_is_completed(
    tmp_path: Path, uninterrupted
):
    run(tmp_path)
    (tmp_path / "result.json").unlink()
    _, result = run(tmp_path, dies_at=0)
    assert result.losses == uninterrupted[1].losses
    assert (tmp_path / "result.json").is_file()


def test_other_settings_are_refused_by_name(tmp_path: Path):
    with pytest.raises(Killed):
        run(tmp_path, dies_at=6)
    with pytest.raises(ValueError, match=r"lr: 0.01 there, 0.02 here"):
        run(tmp_path, lr=0.02)
    with pytest.raises(ValueError, match=r"steps: 23 there, 30 here"):
        run(tmp_path, steps=30)
    run(tmp_path, checkpoint_every=7, log_every=3)  # these do not change the numbers


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path):
    def batches(step: int) -> dict[str, Tensor]:
        batch = batch_at(step)
        return {**batch, "y": batch["y"] * float("nan")} if step == 10 else batch

    model = toy_model()
    with pytest.raises(NonFiniteLossError, match="the loss at step 10 is not finite") as raised:
        train(model, batches, toy_config(), folder=tmp_path, loss_fn=toy_loss, name="tune")
    error = raised.value
    assert (error.name, error.step) == ("tune", 10)
    assert error.checkpoint == tmp_path / "step-000008"
    assert "step-000008" in str(error)
    assert "lower learning rate" in str(error)
    assert error.last_loss is not None
    assert f"{error.last_loss:.4g}" in str(error)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert flat_checkpoint(tmp_path)["step"] == 8


def test_an_infinite_gradient_stops_too():
    def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        # The square root has value 0 and slope infinity at 0.
        return (
            toy_loss(model, batch) + (model.head.bias - model.head.bias.detach()).abs().sqrt().sum()
        )

    with pytest.raises(NonFiniteLossError, match=r"gradient norm at step 0 .* No checkpoint"):
        train(toy_model(), batch_at, toy_config(), loss_fn=loss_fn)


class TwoOptimizers:
    """Weights and a mixture, each with its own optimizer, noise stream and memory."""

    def __init__(self) -> None:
        self.model = toy_model()
        self.mixture = nn.ParameterList([nn.Parameter(torch.zeros(2))])
        self.stream = torch_generator(7, "noise")
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.state = LoopState(
            modules={"model": self.model, "mixture": self.mixture},
            optimizers={
                "weights": build_adamw(trained, lr=0.01),
                "mixture": torch.optim.SGD(self.mixture.parameters(), lr=0.1, momentum=0.9),
            },
            generators={"noise": self.stream},
            extra={"path": []},
        )

    def step(self, step: int) -> dict:
        optimizer = self.state.optimizers["mixture" if step % 3 == 2 else "weights"]
        weights = torch.softmax(self.mixture[0] + torch.rand(2, generator=self.stream), dim=0)
        batch = batch_at(step)
        loss = toy_loss(self.model, batch) * weights[0] + weights[1] * 0.7
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.state.extra["path"].append(round(float(weights[0].detach()), 6))
        return {"loss": loss.detach(), "tokens": 16}

    def run(self, folder: Path | None, dies_at: int | None = None):
        def step_fn(step: int) -> dict:
            if step == dies_at:
                raise Killed
            return self.step(step)

        return run_loop(
            step_fn, steps=15, state=self.state, folder=folder, checkpoint_every=4, seed=1
        )


@pytest.mark.parametrize("step", [2, 9, 14])
def test_a_loop_over_two_optimizers_and_a_stream_resumes_exactly(tmp_path: Path, step: int):
    whole = TwoOptimizers()
    expected = whole.run(tmp_path / "whole")
    with pytest.raises(Killed):
        TwoOptimizers().run(tmp_path / "killed", dies_at=step)
    resumed = TwoOptimizers()
    result = resumed.run(tmp_path / "killed")
    assert (result.losses, result.tokens) == (expected.losses, expected.tokens)
    assert resumed.state.extra == whole.state.extra
    assert len(resumed.state.extra["path"]) == 15
    assert_same(flat_checkpoint(tmp_path / "killed"), flat_checkpoint(tmp_path / "whole"))
    assert torch.equal(resumed.stream.get_state(), whole.stream.get_state())
