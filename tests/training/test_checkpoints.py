"""Checkpoints: exact, whole or absent, and fussy about what they are loaded into."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from manticore.training import (
    build_adamw,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from tests.training.toy import batch_at, toy_loss, toy_model


def stepped_model(seed: int = 0, steps: int = 3):
    model = toy_model(seed)
    optimizer = build_adamw([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        toy_loss(model, batch_at(step)).backward()
        optimizer.step()
    return model, optimizer


def test_weights_moments_buffers_and_streams_come_back_bit_by_bit(tmp_path: Path):
    model, optimizer = stepped_model()
    stream = torch.Generator().manual_seed(4)
    torch.rand(3, generator=stream)
    parts = {"modules": {"m": model}, "optimizers": {"o": optimizer}}
    save_checkpoint(tmp_path, step=3, **parts, generators={"s": stream}, extra={"a": [1, None]})
    expected_draws = torch.rand(5, generator=stream)

    other, other_optimizer = stepped_model(steps=1)
    other_stream = torch.Generator()
    found = load_checkpoint(
        tmp_path,
        modules={"m": other},
        optimizers={"o": other_optimizer},
        generators={"s": other_stream},
    )
    assert found is not None
    assert (found.step, found.extra) == (3, {"a": [1, None]})
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    ours, theirs = optimizer.state_dict(), other_optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    for index, entries in ours["state"].items():
        for key, value in entries.items():
            assert torch.equal(theirs["state"][index][key], value)
    assert torch.equal(torch.rand(5, generator=other_stream), expected_draws)


def test_moments_follow_names_not_the_order_of_parameters(tmp_path: Path):
    model, optimizer = stepped_model()
    save_checkpoint(tmp_path, step=3, modules={"m": model}, optimizers={"o": optimizer})
    other = toy_model()
    backwards = build_adamw([p for p in other.parameters() if p.requires_grad][::-1], lr=0.01)
    load_checkpoint(tmp_path, modules={"m": other}, optimizers={"o": backwards})
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        if a.requires_grad:
            expected = optimizer.state[a]["exp_avg"]
            assert torch.equal(backwards.state[b]["exp_avg"], expected), name


def test_a_tied_weight_is_stored_once_and_stays_tied(tmp_path: Path):
    model, _ = stepped_model()
    path = save_checkpoint(tmp_path, step=1, modules={"m": model}, write_frozen=True)
    stored = load_file(path / "weights.safetensors")
    assert "m/last.weight" in stored
    assert "m/tied.weight" not in stored
    other = toy_model(seed=9)
    load_checkpoint(tmp_path, modules={"m": other})
    assert other.tied.weight is other.last.weight
    assert torch.equal(other.tied.weight, model.tied.weight)


def test_an_untied_model_is_refused(tmp_path: Path):
    save_checkpoint(tmp_path, step=1, modules={"m": toy_model()})
    other = toy_model()
    other.tied.weight = nn.Parameter(other.tied.weight.detach().clone())
    with pytest.raises(ValueError, match=r"m/tied.weight: tied to m/last.weight on one side only"):
        load_checkpoint(tmp_path, modules={"m": other})


def test_frozen_weights_are_hashed_not_written_and_others_are_refused(tmp_path: Path):
    model, optimizer = stepped_model()
    parts = {"modules": {"m": model}, "optimizers": {"o": optimizer}}
    path = save_checkpoint(tmp_path, step=1, **parts)
    assert "m/frozen.weight" not in load_file(path / "weights.safetensors")
    other, other_optimizer = stepped_model(seed=1)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"m/frozen.weight: frozen, but with other values"):
        load_checkpoint(tmp_path, modules={"m": other}, optimizers={"o": other_optimizer})
    assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())


def test_a_frozen_weight_changed_in_place_gets_another_hash(tmp_path: Path):
    model, optimizer = stepped_model()
    parts = {"modules": {"m": model}, "optimizers": {"o": optimizer}}
    hashes = []
    for step in (1, 2):
        path = save_checkpoint(tmp_path, step=step, **parts)
        hashes.append(json.loads((path / "checkpoint.json").read_text())["frozen"])
        with torch.no_grad():
            model.frozen.weight.mul_(2)
    assert hashes[0]["m/frozen.weight"] != hashes[1]["m/frozen.weight"]
    assert hashes[0]["m/frozen.bias"] == hashes[1]["m/frozen.bias"]


def test_the_two_newest_are_kept_and_the_pointer_names_the_last(tmp_path: Path):
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step=step, modules={"m": toy_model()})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "latest.json",
        "step-000010",
        "step-000015",
    ]
    pointer = json.loads((tmp_path / "latest.json").read_text())
    assert pointer == {"step": 15, "folder": "step-000015"}


def break_weights(path: Path) -> None:
    data = bytearray((path / "weights.safetensors").read_bytes())
    data[-3] ^= 1
    (path / "weights.safetensors").write_bytes(data)


def cut_state(path: Path) -> None:
    data = (path / "state.safetensors").read_bytes()
    (path / "state.safetensors").write_bytes(data[: len(data) // 2])


def empty_record(path: Path) -> None:
    (path / "checkpoint.json").write_text("")


def alter_record(path: Path) -> None:
    record = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps({**record, "step": 99}))


def lose_weights(path: Path) -> None:
    (path / "weights.safetensors").unlink()


@pytest.mark.parametrize(
    "harm", [break_weights, cut_state, empty_record, alter_record, lose_weights]
)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path, harm):
    for step in (8, 4):
        kept, optimizer = stepped_model(steps=step)
        parts = {"modules": {"m": kept}, "optimizers": {"o": optimizer}}
        save_checkpoint(tmp_path, step=step, **parts)
    harm(tmp_path / "step-000008")
    model, optimizer = stepped_model(steps=1)
    with pytest.warns(UserWarning, match="step-000008 is damaged"):
        found = load_checkpoint(tmp_path, modules={"m": model}, optimizers={"o": optimizer})
    assert found is not None
    assert found.step == 4
    assert all(torch.equal(model.state_dict()[k], v) for k, v in kept.state_dict().items())


def test_an_unfinished_folder_does_not_count(tmp_path: Path):
    save_checkpoint(tmp_path, step=4, modules={"m": toy_model()})
    half = tmp_path / ".step-000008.tmp"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"12")
    found = load_checkpoint(tmp_path, modules={"m": toy_model()})
    assert found is not None
    assert found.step == 4


def test_an_empty_folder_gives_none(tmp_path: Path):
    assert load_checkpoint(tmp_path / "nothing", modules={"m": toy_model()}) is None


def test_another_model_is_refused_with_a_list_of_differences(tmp_path: Path):
    save_checkpoint(tmp_path, step=4, modules={"m": nn.Linear(3, 2)})
    with pytest.raises(ValueError, match=r"m/weight: saved \(2, 3\) torch.float32, here \(2, 4\)"):
        load_checkpoint(tmp_path, modules={"m": nn.Linear(4, 2)})
    with pytest.raises(ValueError, match="m/bias: only in the checkpoint"):
        load_checkpoint(tmp_path, modules={"m": nn.Linear(3, 2, bias=False)})
    with pytest.raises(ValueError, match=r"here \(2, 3\) torch.bfloat16"):
        load_checkpoint(tmp_path, modules={"m": nn.Linear(3, 2).bfloat16()})


def test_another_set_of_trained_parameters_is_refused(tmp_path: Path):
    model = nn.Linear(3, 2)
    optimizer = build_adamw([model.weight], lr=0.1)
    save_checkpoint(tmp_path, step=4, modules={"m": model}, optimizers={"o": optimizer})
    both = build_adamw(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizer o trains other parameters: m/bias"):
        load_checkpoint(tmp_path, modules={"m": model}, optimizers={"o": both})


def test_a_stray_parameter_in_an_optimizer_is_an_error(tmp_path: Path):
    optimizer = build_adamw([nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(ValueError, match="belongs to none of the modules"):
        save_checkpoint(tmp_path, step=1, modules={}, optimizers={"o": optimizer})


def test_weights_alone_hold_everything_frozen_ones_included(tmp_path: Path):
    model = toy_model()
    save_weights(tmp_path / "final", {"m": model}, {"note": 1})
    other = toy_model(seed=5)
    assert load_weights(tmp_path / "final", {"m": other}) == {"note": 1}
    assert all(torch.equal(other.state_dict()[k], v) for k, v in model.state_dict().items())
    break_weights(tmp_path / "final")
    with pytest.raises(ValueError, match="altered or cut short"):
        load_weights(tmp_path / "final", {"m": other})


def test_a_failing_write_leaves_nothing_half_written(tmp_path: Path):
    save_checkpoint(tmp_path, step=1, modules={"m": toy_model()})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a full disk would
    try:
        with pytest.raises(OSError, match="Nothing half-written was left"):
            save_checkpoint(tmp_path, step=2, modules={"m": nn.Linear(64, 64)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest.json", "step-000001"]


def test_too_little_space_is_said_before_writing(tmp_path: Path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"No space left for a checkpoint: .*step-000001"):
        save_checkpoint(tmp_path, step=1, modules={"m": toy_model()})
    assert list(tmp_path.iterdir()) == []
