"""The loss improvement threshold on curves made by hand, and what it does to an optimizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from manticore.config.transfer_recipe import FreezeConfig
from manticore.conversion.threshold import INHERITED, Unfreezing, is_due, window_means
from manticore.training import ParameterGroup, build_adamw
from manticore.training.optimizers import set_learning_rate

RULE = FreezeConfig(window=2, threshold=0.1, patience=1, warmup_steps=4, latest=None)


def with_patience(patience: int) -> FreezeConfig:
    return FreezeConfig(window=1, threshold=0.1, patience=patience, latest=None)


# The rule


def test_only_full_windows_count() -> None:
    assert window_means([4.0, 2.0, 3.0, 1.0, 9.0], 2) == [3.0, 2.0]


@pytest.mark.parametrize(
    ("losses", "due"),
    [
        ([], False),
        ([4.0, 4.0], False),  # one window has nothing to be compared with
        ([4.0, 4.0, 3.9], False),  # the second window is not full
        ([4.0, 4.0, 3.9, 3.9], True),  # 2.5 % better
        ([4.0, 4.0, 3.0, 3.0], False),  # 25 % better
        ([4.0, 4.0, 3.62, 3.62], True),  # just below 10 %
        ([4.0, 4.0, 3.58, 3.58], False),  # just above it
        ([4.0, 4.0, 5.0, 5.0], True),  # worse is no improvement
        ([4.0, 4.0, 3.0, 3.0, 2.9, 2.9], True),
    ],
)
def test_a_small_gain_from_window_to_window_is_a_strike(losses: list[float], due: bool) -> None:
    assert is_due(losses, RULE) is due


def test_patience_counts_strikes_in_a_row() -> None:
    apart = [8.0, 7.9, 4.0, 3.9]  # strike, gain, strike
    assert is_due(apart, with_patience(1))
    assert not is_due(apart, with_patience(2))
    assert is_due([*apart, 3.8], with_patience(2))


# The director


def directed(rule: FreezeConfig, steps: int = 20) -> tuple[Unfreezing, torch.optim.AdamW]:
    old, new = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    groups = {
        "new": ParameterGroup(parameters=[new]),
        INHERITED: ParameterGroup(parameters=[old]),
    }
    return Unfreezing([old], rule, steps), build_adamw(groups, lr=1.0, weight_decay=0.5)


def test_nothing_touches_a_frozen_parameter_and_it_gets_no_moments() -> None:
    director, optimizer = directed(RULE)
    old = director.inherited[0]
    for step in range(5):
        director.before_step(step, optimizer)
        loss = sum(p.sum() for g in optimizer.param_groups for p in g["params"] if p.requires_grad)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    assert torch.equal(old, torch.ones(3, 3))  # weight decay neither
    assert old not in optimizer.state
    assert not torch.equal(optimizer.param_groups[0]["params"][0], torch.ones(3, 3))


def test_after_the_thaw_only_the_inherited_rate_warms_up() -> None:
    director, optimizer = directed(RULE)
    for loss in (4.0, 4.0, 3.9, 3.9):
        director.after_evaluation({"loss": loss})
    rates = []
    for step in range(7, 13):
        director.before_step(step, optimizer)
        set_learning_rate(optimizer, 1.0)
        rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})
    assert [rate[INHERITED] for rate in rates] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert {rate["new"] for rate in rates} == {1.0}
    assert director.memory["unfrozen_at"] == 7
    assert director.memory["why"] == "threshold"


def test_a_rule_that_never_fires_thaws_at_the_latest_step_or_not_at_all() -> None:
    late = FreezeConfig(window=2, threshold=0.0, patience=1, latest=0.5)
    director, optimizer = directed(late)
    never, _ = directed(FreezeConfig(window=2, threshold=0.0, patience=1, latest=None))
    for step in range(20):
        director.before_step(step, optimizer)
        never.before_step(step, optimizer)
    assert director.memory == {"losses": [], "unfrozen_at": 10, "why": "latest"}
    assert never.memory["unfrozen_at"] is None
