"""A base model plus a known change of its weights: the search finds the shape of that change.

The student regresses onto the planted model, so nothing but losses and gradients is told.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from manticore.adapters.monarch import to_dense
from manticore.config.adapter_recipe import RateSearchConfig, ShapeSearchConfig
from manticore.seeds import torch_generator
from manticore.training import TrainConfig, train
from manticore.tuning.methods import adapt, trainable_parameters
from manticore.tuning.one_shot import values_of, weight_changes
from manticore.tuning.shape_search import candidates, halve
from manticore.tuning.shapes import allocate, module_kinds, parameters_of, uniform

SIZE, NBLOCKS, RANKS = 32, (1, 2, 4, 8), (1, 2, 4, 8)


class TwoMaps(nn.Module):
    """Two linear maps of one input; the answer holds both."""

    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(SIZE, SIZE, bias=False)
        self.up_proj = nn.Linear(SIZE, SIZE, bias=False)

    def forward(self, x):
        return torch.cat([self.q_proj(x), self.up_proj(x)], dim=-1)


def base_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TwoMaps()


def planted(base, kinds, allocation):
    """The base with a random change of these shapes."""
    model, generator = copy.deepcopy(base), torch_generator(1, "planted")
    for kind in kinds:
        shape = kind.shape(allocation[kind.ending])
        first = torch.randn(shape.first_shape, generator=generator)
        second = torch.randn(shape.second_shape, generator=generator)
        with torch.no_grad():
            model.get_submodule(kind.ending).weight += to_dense(first, second, shape) / SIZE**0.5
    return model.requires_grad_(False)


def regression(target):
    """Batches of the regression onto a model."""

    def batch_at(step):
        x = torch.randn(256, SIZE, generator=torch_generator(2, "inputs", step))
        return {"x": x, "y": target(x)}

    return batch_at


def squared_error(model, batch):
    return functional.mse_loss(model(batch["x"]), batch["y"])


class Regression:
    """What `halve` asks of an experiment: it really trains adapters, on the regression."""

    def __init__(self, base, batch_at, search):
        self.base, self.batch_at, self.seeds = base, batch_at, (0,)
        self.recipe = SimpleNamespace(search=search, rates=RateSearchConfig(rates=(0.02,)))
        self.trained = {}

    def train_all(self, wanted, steps):
        return [{"validation": {"loss": self.loss_of(m, lr, steps)}} for m, lr, _ in wanted]

    def loss_of(self, method, lr, steps):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            targets = list(method.targets)
            model = adapt(copy.deepcopy(self.base), "more", method.settings, targets)
        self.trained[method.id] = trainable_parameters(model)
        train(
            model,
            self.batch_at,
            TrainConfig(steps=steps, lr=lr, weight_decay=0.0, warmup_steps=0),
            parameters=[p for p in model.parameters() if p.requires_grad],
            loss_fn=squared_error,
            progress=False,
            seed=0,
        )
        with torch.no_grad():
            return float(squared_error(model, self.batch_at(10_000)))


@pytest.mark.parametrize("probe", ["gradient", "short-run"])
@pytest.mark.parametrize(
    "truth",
    [
        {"q_proj": (4, 4), "up_proj": (1, 4)},
        {"q_proj": (1, 2), "up_proj": (8, 4)},
        {"q_proj": (2, 2), "up_proj": (2, 2)},
    ],
)
def test_one_look_finds_the_shape_that_was_planted_in_each_kind(probe, truth):
    base = base_model()
    kinds = module_kinds(base, ["q_proj", "up_proj"])
    batch_at = regression(planted(base, kinds, truth))
    changes = weight_changes(
        base, kinds, batch_at, probe=probe, steps=30, lr=2e-2, loss_fn=squared_error
    )
    values = values_of(kinds, changes, NBLOCKS, RANKS)
    assert allocate(kinds, values, parameters_of(kinds, truth)) == truth


@pytest.mark.parametrize("choice", [(1, 4), (4, 4)])
def test_halving_with_real_training_keeps_the_planted_shape(choice):
    base = base_model()
    kinds = module_kinds(base, ["q_proj", "up_proj"])
    truth = uniform(kinds, choice)
    search = ShapeSearchConfig(
        budget=parameters_of(kinds, truth), nblocks=NBLOCKS, block_ranks=(4,), rungs=(20, 60),
        finalists=1,
    )  # fmt: skip
    experiment = Regression(base, regression(planted(base, kinds, truth)), search)
    found = candidates(kinds, search, {})
    assert list(found) == ["1x4", "2x4", "4x4", "8x4"]
    history, best = halve(experiment, kinds, found)
    assert found[best[0]] == truth
    assert [len(rung["scores"]) for rung in history] == [4, 2]
    assert set(experiment.trained.values()) == {search.budget}  # equal terms
    # It is not a matter of luck: what the shape cannot hold is most of the loss.
    last = history[-1]["scores"]
    assert min(last.values()) < 0.5 * max(last.values())
