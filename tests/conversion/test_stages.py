"""The stages of a student: frozen bit by bit, resumed across the thaw, adapters, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from manticore.config.transfer_recipe import DistilConfig
from manticore.conversion.accounting import Ledger
from manticore.conversion.distil import distillation_loss
from manticore.conversion.student import Student
from manticore.conversion.student_trials import trained_student
from manticore.conversion.threshold import Unfreezing, is_due
from manticore.evaluation.language import causal_loss
from manticore.training import NonFiniteLossError
from manticore.training.gradient_step import GradientStep
from tests.conversion.students import STEPS, student, teacher_folder

FREEZE = {"window": 1, "threshold": 0.5, "patience": 3, "warmup_steps": 3}
"""Every window is a strike: three gains are known after step 4, so step 4 thaws."""


class Killed(BaseException):
    """What a kill looks like from inside."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_folder(tmp_path_factory.mktemp("teacher"))


def watch(monkeypatch: pytest.MonkeyPatch, die_at: int | None = None) -> list[dict[str, Any]]:
    """Record the inherited weights as they are before each step; die there if told to."""
    seen: list[dict[str, Any]] = []
    before_step = Unfreezing.before_step

    def watched(self: Unfreezing, step: int, optimizer: torch.optim.Optimizer) -> None:
        if step == die_at:
            raise Killed
        weights = [p.detach().clone() for p in self.inherited]
        before_step(self, step, optimizer)
        moments = sum(p in optimizer.state for p in self.inherited)
        seen.append({"step": step, "weights": weights, "moments": moments})

    monkeypatch.setattr(Unfreezing, "before_step", watched)
    return seen


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def final_weights(one: Student, result: dict[str, Any], base: Path, run: Path) -> Any:
    return trained_student(one.recipe, result, base, run).state_dict()


# Frozen, then not


def test_inherited_weights_are_bitwise_the_teachers_until_the_thaw(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch)
    one = student(folder, {"freeze": True}, freeze=FREEZE)
    result = one.run(tmp_path)
    thaw = result["unfrozen_at"]
    assert (thaw, result["unfrozen_why"]) == (4, "threshold")
    assert all(equal(look["weights"], seen[0]["weights"]) for look in seen[: thaw + 1])
    assert all(look["moments"] == 0 for look in seen[: thaw + 1])
    assert not equal(seen[thaw + 1]["weights"], seen[0]["weights"])
    assert seen[-1]["moments"] > 0


def test_the_thaw_follows_from_the_written_curve(folder: Path, tmp_path: Path) -> None:
    result = student(folder, {"freeze": True}, freeze=FREEZE).run(tmp_path)
    losses = [point["loss"] for point in result["curve"][1:]]
    rule = student(folder, {"freeze": True}, freeze=FREEZE).recipe.freeze
    fires = next(n for n in range(STEPS) if is_due(losses[:n], rule))
    assert fires == result["unfrozen_at"]


@pytest.mark.parametrize("die_at", [3, 6])
def test_a_run_killed_before_or_behind_the_thaw_ends_as_if_it_was_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, die_at: int
) -> None:
    row: dict[str, Any] = {"freeze": True, "align": 2}
    whole = student(folder, row, freeze=FREEZE)
    expected = whole.run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        watch(patch, die_at)
        with pytest.raises(Killed):
            student(folder, row, freeze=FREEZE).run(tmp_path / "killed")
    resumed = student(folder, row, freeze=FREEZE)
    found = resumed.run(tmp_path / "killed")
    assert found["unfrozen_at"] == expected["unfrozen_at"]
    assert found["validation"] == pytest.approx(expected["validation"], abs=1e-6)
    assert [p["flops"] for p in found["curve"]] == [p["flops"] for p in expected["curve"]]
    ours = final_weights(resumed, found, folder, tmp_path / "killed")
    theirs = final_weights(whole, expected, folder, tmp_path / "whole")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6)


# Other stages


def test_a_row_may_only_align(folder: Path, tmp_path: Path) -> None:
    one = student(folder, {"copy": "all", "align": STEPS})
    result = one.run(tmp_path)
    assert result["start"] == result["validation"]
    assert len(result["curve"]) == 1 + STEPS  # every step was looked at
    assert result["tokens"] == result["curve"][-1]["tokens"] == (STEPS * 4 + 2) * 16
    model = trained_student(one.recipe, result, folder, tmp_path)
    assert one._point(model, _ledger(one, model))["loss"] == pytest.approx(result["validation"])


def test_an_adapter_leaves_the_inherited_weights_and_is_merged_at_the_end(
    folder: Path, tmp_path: Path
) -> None:
    adapter = {"method": "lora", "settings": {"r": 2}}
    one = student(folder, {"adapter": adapter}, lr=1e-2)
    result = one.run(tmp_path)
    start, plan = one.transferred()
    model = trained_student(one.recipe, result, folder, tmp_path)
    assert not any("lora" in name for name in model.state_dict())
    assert one._point(model, _ledger(one, model))["loss"] == pytest.approx(
        result["validation"],
        abs=1e-5,  # merging adds the product to the matrix, which rounds once
    )
    kept = dict(start.named_parameters())
    for name in plan.inherited_names():
        is_adapted = name.endswith("weight") and kept[name].ndim == 2 and "embed" not in name
        if not is_adapted:
            assert torch.equal(kept[name], dict(model.named_parameters())[name]), name
    new = next(row.target for row in plan.rows if row.how == "initialised")
    assert not torch.equal(kept[str(new)], dict(model.named_parameters())[str(new)])


@pytest.mark.parametrize("method", ["lora", "more"])
def test_the_seed_fixes_an_adapter_even_across_a_kill(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    row: dict[str, Any] = {"adapter": {"method": method}}
    expected = student(folder, row).run(tmp_path / "whole")
    backward = GradientStep._backward

    def dying(self: GradientStep, step: int, batch: Any) -> tuple[float, int]:
        if step == 3:
            raise Killed
        return backward(self, step, batch)

    with monkeypatch.context() as patch:
        patch.setattr(GradientStep, "_backward", dying)
        with pytest.raises(Killed):
            student(folder, row).run(tmp_path / "killed")
    torch.rand(7)  # the global stream stands elsewhere
    found = student(folder, row).run(tmp_path / "killed")
    assert [p["loss"] for p in found["curve"]] == [p["loss"] for p in expected["curve"]]


def test_an_adapter_saves_most_gradients_of_weights(folder: Path, tmp_path: Path) -> None:
    row: dict[str, Any] = {"adapter": {"method": "lora", "settings": {"r": 2}}}
    one = student(folder, {**row, "calibrate": False})
    adapted, (model, plan) = one.run(tmp_path), one.transferred()
    per_token = _ledger(one, model).student_forward * (2 + 1 - plan.share_inherited)
    assert adapted["flops"] == pytest.approx(adapted["tokens"] * per_token)


def test_distillation_is_zero_for_the_teacher_and_cross_entropy_without_weight(
    folder: Path,
) -> None:
    one = student(folder, {})
    batch = one.data.batches("validation", 8, 0).batch_at(0)
    model, _ = one.transferred()
    with torch.no_grad():
        told = distillation_loss(one.teacher, DistilConfig(weight=1.0))
        assert float(told(one.teacher, batch)) == pytest.approx(0.0, abs=1e-6)
        assert float(told(model, batch)) > 1e-5
        only_text = distillation_loss(one.teacher, DistilConfig(weight=0.0))
        assert float(only_text(model, batch)) == pytest.approx(float(causal_loss(model, batch)))


# Losses that are not finite


def test_a_nan_behind_the_thaw_says_so_and_keeps_the_last_good_state(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward = GradientStep._backward

    def broken(self: GradientStep, step: int, batch: Any) -> tuple[float, int]:
        loss, tokens = backward(self, step, batch)
        return (float("nan") if step == 7 else loss), tokens

    monkeypatch.setattr(GradientStep, "_backward", broken)
    one = student(folder, {"freeze": True}, freeze=FREEZE)
    with pytest.raises(NonFiniteLossError, match=r"trained since step 4: a longer") as error:
        one.run(tmp_path)
    assert error.value.checkpoint is not None
    assert error.value.checkpoint.name == "step-000006"
    assert error.value.checkpoint.is_dir()


def _ledger(one: Student, model: Any) -> Ledger:
    return Ledger.of(one.teacher.config, model.config, 16)
