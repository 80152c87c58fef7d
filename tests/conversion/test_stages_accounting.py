"""What stages cost, counted by hand, and what goals and recipes say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from manticore.config.errors import ConfigError
from manticore.config.load import from_plain
from manticore.config.transfer_recipe import DistilConfig, TransferGoal, TransferRecipe
from manticore.conversion.accounting import Ledger
from manticore.conversion.distil import mixed_loss
from manticore.conversion.goals import judge, speed_up, tokens_to
from tests.conversion.students import plain_recipe


def ledger() -> Ledger:
    return Ledger(teacher_forward=100.0, student_forward=80.0, layer_forward=10.0)


# Cost


def test_plain_training_is_three_forwards_of_the_student() -> None:
    found = ledger().after_training(1000, {"frozen": 0.0, "new": 0.2, "distil": False})
    assert found == {"tokens": 1000, "flops": 1000 * 3 * 80.0, "teacher_flops": 0.0}


def test_frozen_weights_cost_no_gradients_of_their_own() -> None:
    # Half of the tokens frozen, with a fifth of the weights trained even then.
    found = ledger().after_training(1000, {"frozen": 0.5, "new": 0.2, "distil": False})
    assert found["flops"] == pytest.approx(500 * 80 * (2 + 0.2) + 500 * 80 * 3)


def test_the_teachers_forward_counts_in_alignment_and_distillation() -> None:
    book = ledger()
    book.align(100, converted=3)
    assert book.so_far() == {
        "tokens": 100.0,
        "flops": 100 * 100.0 + 3 * 100 * 3 * 10.0,
        "teacher_flops": 100 * 100.0,
    }
    found = book.after_training(50, {"frozen": 0.0, "new": 1.0, "distil": True})
    assert found["tokens"] == 150
    assert found["teacher_flops"] == 150 * 100.0
    assert found["flops"] == book.flops + 50 * (100 + 3 * 80.0)
    assert book.tokens == 100  # asking changes nothing


def test_calibration_is_a_forward_pass_of_the_teacher_and_of_the_new_layers() -> None:
    book = ledger()
    book.calibrate(100, converted=3)
    assert book.so_far() == {
        "tokens": 100.0,
        "flops": 100 * 100.0 + 100 * 3 * 10.0,
        "teacher_flops": 100 * 100.0,
    }


# Distillation


def test_the_mixed_loss_is_its_two_parts_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(5, 7, generator=generator) for _ in range(2))
    labels = torch.tensor([0, 3, 6, 2, 2])
    p, q = (theirs / 2).softmax(-1), (ours / 2).softmax(-1)
    divergence = (p * (p / q).log()).sum(-1).mean()
    cross = -ours.softmax(-1).log()[torch.arange(5), labels].mean()
    found = mixed_loss(ours, theirs, labels, DistilConfig(weight=0.3, temperature=2.0))
    assert float(found) == pytest.approx(float(0.7 * cross + 0.3 * 4 * divergence), rel=1e-5)


# Goals


def curve(*points: tuple[float, float]) -> list[dict[str, float]]:
    return [{"tokens": tokens, "loss": loss} for tokens, loss in points]


def test_tokens_to_a_loss_lie_on_a_straight_line_between_looks() -> None:
    line = curve((0, 6.0), (100, 4.0), (200, 3.0))
    assert tokens_to(line, 5.0) == pytest.approx(50)
    assert tokens_to(line, 3.0) == pytest.approx(200)
    assert tokens_to(line, 6.5) == 0
    assert tokens_to(line, 2.9) is None


def test_a_speed_up_is_a_quotient_of_tokens() -> None:
    slow = curve((0, 8.0), (200, 6.0), (400, 4.0))
    assert speed_up(curve((0, 5.0), (100, 3.0)), slow) == pytest.approx(8.0)
    assert speed_up(curve((0, 5.0), (100, 4.5)), slow) is None
    # There before any training: counted with its first look, not as infinitely fast.
    assert speed_up(curve((0, 3.9), (100, 3.0)), slow) == pytest.approx(4.0)
    assert speed_up(curve((20, 3.9), (120, 3.0)), slow) == pytest.approx(400 / 120)


def row(name: str, losses: list[float], starts: list[float]) -> dict[str, Any]:
    by_seed = {"loss": losses, "start": starts}
    return {"id": name, "label": name, "by_seed": by_seed, "curves": []}


def test_a_goal_is_met_when_every_seed_meets_it() -> None:
    rows = [row("a", [3.0, 3.2], [4.0, 4.1]), row("b", [3.5, 3.5], [4.5, 4.5])]
    goals = [
        TransferGoal(kind="better-by", row="a", than="b", amount=0.25),
        TransferGoal(kind="better-by", row="a", than="b", amount=0.4),
        TransferGoal(kind="near-teacher", row="a", amount=0.2),
    ]
    found = judge(rows, goals, teacher=3.9)
    assert [one["met"] for one in found] == [True, False, True]
    assert found[0]["values"] == pytest.approx([0.5, 0.3])
    assert "0.400 ± 0.141 nats lower (goal: at least 0.4): not met" in found[1]["sentence"]


# Recipes


@pytest.mark.parametrize(
    ("rows", "changes", "says"),
    [
        ([{"id": "a"}, {"id": "a"}], {}, "each once"),
        ([{"id": "teacher"}], {}, "'teacher' among rows is taken"),
        ([{"id": "a", "align": 11}], {}, "aligns for 11 of 10 steps"),
        ([{"id": "a", "align": 10, "distil": True}], {}, "only aligns"),
        ([{"id": "a", "copy": "scratch", "freeze": True}], {}, "inherits nothing"),
        ([{"id": "a", "freeze": True, "adapter": {}}], {}, "Choose one"),
        ([{"id": "a", "copy": "some"}], {}, "paper"),
        ([{"id": "a"}], {"freeze": {"window": 0}}, "freeze.window=0"),
        ([{"id": "a"}], {"freeze": {"latest": 2.0}}, "0 to 1"),
        ([{"id": "a"}], {"distil": {"temperature": 0.0}}, "above 0"),
        (
            [{"id": "a"}],
            {"goals": [{"kind": "better-by", "row": "a", "amount": 0.1}]},
            "the others need one",
        ),
        (
            [{"id": "a"}],
            {"goals": [{"kind": "near-teacher", "row": "b", "amount": 0.1}]},
            "Known: a",
        ),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(
    rows: list[dict[str, Any]], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises((ValueError, ConfigError), match=says):
        from_plain(TransferRecipe, plain_recipe(rows, **changes), source="the test")
