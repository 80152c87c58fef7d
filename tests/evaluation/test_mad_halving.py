"""Cheaper at the same ranking: halving, early stopping, and the search that uses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manticore.evaluation.mad import protocol, score
from manticore.evaluation.mad.entry import Entry, entry_of_layers
from manticore.evaluation.mad.halving import default_rungs, replay, run_halving
from manticore.evaluation.mad.layouts import LayoutSpace, propose, striped
from manticore.evaluation.mad.pareto import pareto_front
from manticore.evaluation.mad.plan import plan_trials
from manticore.evaluation.mad.results import ResultsFolder, load_records
from manticore.evaluation.mad.savings import savings, stop_index
from manticore.evaluation.mad.search import Rung, search_layouts, search_steps
from manticore.evaluation.mad.sweep import run_sweep
from tests.evaluation.mad_toy import RULED

BASELINE = protocol("baseline")
FEW = BASELINE.only(["C", "SC"])
QUIET = {"worker": RULED, "progress": False}
ENTRIES = [entry_of_layers(["attention", *["rwkv7-channel"] * n], 16) for n in (1, 2, 3)]


def test_halving_trains_all_points_a_little_and_the_best_one_whole(tmp_path: Path):
    with ResultsFolder(tmp_path).open(BASELINE) as folder:
        records, ledger = run_halving(ENTRIES[:1], FEW, [0, 1], folder, **QUIET)
    whole = [r for r in records if r["settings"]["training"]["steps"] == r["whole_steps"]]
    assert len(whole) == 2 * 2
    assert {(r["settings"]["lr"], r["settings"]["weight_decay"]) for r in whole} == {(5e-4, 0.0)}
    # 6 points at 1/8, 3 at 1/4, one whole: 2.5 of 6.
    assert ledger.saved == pytest.approx(1 - 2.5 / 6, abs=0.01)
    (row,) = score(records)
    assert not row.missing
    assert set(row.tasks) == {"compression", "selective-copying"}


def test_halving_after_the_whole_sweep_trains_its_rungs_only(tmp_path: Path):
    with ResultsFolder(tmp_path).open(BASELINE) as folder:
        whole = run_sweep(plan_trials(ENTRIES[:1], BASELINE, [0]), folder, **QUIET)
        run_halving(ENTRIES[:1], BASELINE, [0], folder, **QUIET)
    assert len(load_records([tmp_path])) == len(whole) + 6 * (6 + 3)


def test_savings_are_measured_against_the_exhaustive_sweep(tmp_path: Path):
    with ResultsFolder(tmp_path).open(BASELINE) as folder:
        run_sweep(plan_trials(ENTRIES, BASELINE, [0]), folder, **QUIET)
        assert savings(load_records([tmp_path]))["halving"] is None
        run_halving(ENTRIES, BASELINE, [0], folder, **QUIET)
    found = savings(load_records([tmp_path]))
    assert found["exhaustive"]["trainings"] == 3 * 36
    assert found["halving"]["saved"] == pytest.approx(1 - 2.5 / 6, abs=0.01)
    # The rule's best point is the best at every length, so halving finds the very same scores.
    assert found["halving"]["ranks"]["spearman"] == pytest.approx(1.0)
    assert found["halving"]["averages"] == found["exhaustive"]["averages"]
    json.dumps(found)


def test_replayed_halving_is_what_halving_does(tmp_path: Path):
    for name in ("both", "halved"):
        with ResultsFolder(tmp_path / name).open(BASELINE) as folder:
            if name == "both":
                run_sweep(plan_trials(ENTRIES[:2], FEW, [0, 1]), folder, **QUIET)
            run_halving(ENTRIES[:2], FEW, [0, 1], folder, **QUIET)
    made, steps = replay(load_records([tmp_path / "both"]), FEW)
    halved = load_records([tmp_path / "halved"])
    assert {r["key"] for r in made} == {r["key"] for r in halved}
    assert steps == sum(r["result"]["steps"] for r in halved)


def test_patience_ends_a_training_after_so_many_looks_without_gain():
    losses = [1.0, 0.8, 0.9, 0.7, 0.75, 0.76, 0.6]
    curve = [[i, 1.0, loss, 0.0] for i, loss in enumerate(losses)]
    assert [stop_index(curve, patience) for patience in (1, 2, 3)] == [2, 5, 6]


def test_few_points_need_few_rungs():
    assert default_rungs(1) == ()
    assert default_rungs(2) == ((0.25, 1),)
    assert default_rungs(6) == ((0.125, 3), (0.25, 1))


def test_the_front_is_what_nothing_dominates():
    scores = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.8}
    costs = {"a": (10, 1), "b": (5, 5), "c": (9, 9), "d": (5, 6)}
    assert pareto_front(scores, costs) == ["a", "b"]
    assert pareto_front({"a": 1.0, "b": 1.0}, {"a": (1,), "b": (1,)}) == ["a", "b"]


@pytest.mark.parametrize(
    ("share", "attended"),
    [(0.0, []), (0.25, [3]), (0.5, [1, 3]), (1.0, [0, 1, 2, 3])],
)
def test_attention_ends_every_period(share: float, attended: list[int]):
    layers = striped("hyena", "swiglu", "mh-attention", 4, share)
    assert [i for i in range(4) if layers[2 * i] == "mh-attention"] == attended
    assert layers[1::2] == ["swiglu"] * 4


def test_a_mamba_block_is_two_layers_of_mamba():
    layers = striped("mamba:d_state=8", "swiglu", "mh-attention", 2, 0.5)
    assert layers == ["mamba:d_state=8", "mamba:d_state=8", "mh-attention", "swiglu"]


def test_layouts_come_once_and_shares_that_do_not_fit_are_named():
    space = LayoutSpace(
        token_mixers=("deltanet", "rwkv7"), channel_mixers=("rwkv7-channel",), blocks=4
    )
    entries, notes = propose(space)
    # Two mixers at 0, 25 and 50 %, and attention alone once.
    assert len(entries) == 2 * 3 + 1
    assert len(notes) == 1
    assert "8 % attention" in notes[0]
    assert "12 blocks would do" in notes[0]
    assert len(propose(LayoutSpace(token_mixers=("deltanet",), shares=(1 / 12,), blocks=12))[0])


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"token_mixers": ("swiglu",)}, "'swiglu' is a channel mixer"),
        ({"attention": "hyena"}, "is no attention"),
        ({"shares": (2.0,)}, "200 % attention"),
        ({"d_model": 0}, "at least 1"),
    ],
)
def test_a_space_that_contradicts_itself_is_refused(choices, message: str):
    with pytest.raises(ValueError, match=message):
        LayoutSpace(**choices)


def test_a_space_without_choices_is_refused():
    with pytest.raises(ValueError, match="blocks=0"):
        LayoutSpace(blocks=0)
    with pytest.raises(ValueError, match="not between 0 and 1"):
        LayoutSpace(shares=(8.0,))
    with pytest.raises(ValueError, match="at least one token mixer"):
        LayoutSpace(token_mixers=())


def test_search_screens_with_few_steps_and_measures_the_survivors_whole(tmp_path: Path):
    entries: list[Entry] = [
        entry_of_layers([mixer, *["rwkv7-channel"] * n], 16)
        for mixer in ("attention", "deltanet")
        for n in (1, 2, 3)
    ]
    rungs = (Rung(share=0.25, points=1, keep=0.5),)
    with ResultsFolder(tmp_path).open(BASELINE) as folder:
        found = search_layouts(entries, FEW, [0], folder, rungs=rungs, **QUIET)
        again = search_layouts(entries, FEW, [0], folder, rungs=rungs, **QUIET)
    assert found == again
    (step,) = found.history
    assert set(step.scores) == {entry.name for entry in entries}
    assert len(step.kept) == 3
    assert {one.name for one in found.scores} == set(step.kept)
    assert found.scores[0].name == max(step.scores, key=lambda name: step.scores[name])
    # More layers score higher and cost more, so the best and the smallest lie on the front.
    assert found.front[0] == found.scores[0].name
    assert found.steps == search_steps(entries, FEW, [0], rungs) < found.exhaustive
    json.dumps(found.to_dict(), default=str)
