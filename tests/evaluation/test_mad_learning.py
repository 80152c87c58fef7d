"""What the tasks' baselines must show of any sound implementation, at the paper's sizes."""

from __future__ import annotations

import pytest

from manticore.evaluation.mad import protocol
from manticore.evaluation.mad.entry import entry_of_layers
from manticore.evaluation.mad.group import bounds_of, build_model, splits_of
from manticore.evaluation.mad.plan import shared_settings
from manticore.evaluation.mad.training import train_points
from manticore.evaluation.mad.training_types import Outcome, Point, TrainSettings

BASELINE = protocol("baseline")


def trained(layers: list[str], task: str, batch_size: int = 128) -> tuple[Outcome, dict]:
    """Fifty steps of a baseline at rate 1e-3, measured at their end, and the task's bounds."""
    (setting,) = BASELINE.only([task]).settings
    shared = shared_settings(entry_of_layers(layers, 128), BASELINE, setting, 50)
    (outcome,) = train_points(
        lambda generator: build_model(shared, generator),
        [Point(lr=1e-3, weight_decay=0.0, seed=0)],
        splits_of({**shared, "num_test": 256, "num_valid": 128}),
        TrainSettings(steps=50, eval_every=0, schedule="constant", batch_size=batch_size),
    )
    return outcome, bounds_of(shared)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["mh-attention", "hyena"])
def test_memorization_is_solved_within_fifty_steps(mixer: str):
    outcome, bounds = trained([mixer, "swiglu"] * 2, "memorization")
    assert outcome.test is not None
    assert outcome.test.token_accuracy > 0.999 * bounds["ceiling"]


@pytest.mark.slow
def test_without_a_token_mixer_recall_stays_near_chance():
    # Who sees only the present token knows which half it comes from: a value follows a key, and
    # there are eight of them.
    outcome, bounds = trained(["swiglu"] * 4, "in-context-recall", batch_size=32)
    assert outcome.test is not None
    assert outcome.test.token_accuracy < 0.2
    assert bounds["chance"] == pytest.approx(1 / 8)
