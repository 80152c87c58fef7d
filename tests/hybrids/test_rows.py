"""The rows of a comparison: fair budgets, own learning rates, and mixtures on the simplex."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from manticore.config.load import from_plain
from manticore.config.recipes import CompareConfig, HybridRecipe, VariantConfig
from manticore.hybrids.configuration_manticore import ManticoreConfig
from manticore.hybrids.rows import Row, learning_rates, plan_rows, random_mixture, training_flops
from manticore.models.costs import component_cost
from tests.faults.jobs import RECIPE
from tests.models.tiny import tiny_config

SEARCHED = {"mixture": [[0.3, 0.7], [0.6, 0.4]], "embed": None, "head": [0.2, 0.8]}
SPENT = 3.3e7


def recipe(**compare: Any) -> HybridRecipe:
    plain: dict[str, Any] = {**RECIPE, "compare": {}}
    made = from_plain(HybridRecipe, plain, source="the test")
    return dataclasses.replace(made, compare=CompareConfig(**compare))


def config() -> ManticoreConfig:
    return ManticoreConfig(components=[tiny_config("gpt2"), tiny_config("mamba")], num_blocks=2)


def planned(made: HybridRecipe) -> dict[str, Row]:
    rows = plan_rows(made, SEARCHED, config(), SPENT)
    assert len({row.id for row in rows}) == len(rows)
    return {row.id: row for row in rows}


def test_all_rows_are_planned_and_each_can_be_left_out():
    assert list(planned(recipe())) == [
        "hybrid",
        "component-0",
        "component-1",
        "component-0-equal-flops",
        "component-1-equal-flops",
        "no-cross-talk",
        "uniform",
        "random",
    ]
    none = {
        "component_equal_tokens": False,
        "component_equal_flops": False,
        "no_cross_talk": False,
        "uniform_mixture": False,
        "random_mixture": False,
    }
    assert list(planned(recipe(**none))) == ["hybrid"]


def test_equal_tokens_means_the_hybrids_own_steps():
    rows = planned(recipe())
    assert rows["component-0"].steps == rows["hybrid"].steps == recipe().finetune.steps
    assert (rows["component-0"].component, rows["hybrid"].component) == (0, None)


@pytest.mark.parametrize("component", [0, 1])
def test_equal_flops_differ_by_less_than_one_step(component: int):
    """All that the hybrid spent, search included, is what the component gets."""
    made, hybrid = recipe(), config()
    per_step = made.finetune.batch_size * made.data.seq_len
    budget = SPENT + made.finetune.steps * per_step * training_flops(hybrid, made.data.seq_len)
    own = component_cost(hybrid.components[component], made.data.seq_len).training.total * per_step
    steps = planned(made)[f"component-{component}-equal-flops"].steps
    assert abs(steps * own - budget) < own
    assert steps > made.finetune.steps


def test_the_searched_mixture_is_the_hybrids_and_not_the_uniform_rows():
    rows = planned(recipe())
    assert rows["hybrid"].mixture == SEARCHED
    assert rows["no-cross-talk"].mixture == SEARCHED
    assert rows["no-cross-talk"].loyalty == math.inf
    assert rows["uniform"].mixture is None


def test_a_shared_stream_has_no_row_without_cross_talk():
    made = recipe()
    shared = dataclasses.replace(made, hybrid=dataclasses.replace(made.hybrid, mixing="shared"))
    assert "no-cross-talk" not in planned(shared)
    assert random_mixture(shared)["head"] is None


def test_the_random_mixture_lies_on_the_simplex_and_follows_the_seed():
    made = recipe()
    drawn = random_mixture(made)
    for row in [*drawn["mixture"], drawn["head"]]:
        assert sum(row) == pytest.approx(1, abs=1e-6)
        assert min(row) > 0
    assert drawn["mixture"] != [[0.5, 0.5], [0.5, 0.5]]
    assert random_mixture(made) == drawn
    assert random_mixture(dataclasses.replace(made, seed=1)) != drawn


def test_variants_are_rows_with_their_overrides():
    variant = VariantConfig(id="plain", label="Plain", overrides=("projectors.start=random",))
    row = planned(recipe(variants=(variant,)))["plain"]
    assert (row.label, row.group, row.overrides) == ("Plain", "ablation", variant.overrides)


def test_every_row_tries_the_factors_of_its_own_rate():
    made = recipe(lr_factors=(0.5, 1.0, 2.0), row_lr={"component-1": 0.07})
    components = (made.components[0], dataclasses.replace(made.components[1], lr=0.01))
    made = dataclasses.replace(made, components=components)
    rows = planned(made)
    assert learning_rates(rows["hybrid"], made) == pytest.approx([1e-3, 2e-3, 4e-3])
    assert learning_rates(rows["component-1"], made) == [0.07]
    rates = learning_rates(rows["component-1-equal-flops"], made)
    assert rates == pytest.approx([0.005, 0.01, 0.02])


def test_a_row_survives_the_way_through_a_record():
    rows = planned(recipe())
    assert rows["no-cross-talk"].to_dict()["loyalty"] == "inf"
    assert rows["hybrid"].to_dict()["mixture"] == SEARCHED
    assert not torch.is_tensor(rows["random"].to_dict()["mixture"])
