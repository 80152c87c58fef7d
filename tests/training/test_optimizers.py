"""AdamW's groups: who decays, who gets which learning rate, who is clipped with whom."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from manticore.training import ParameterGroup, build_adamw
from manticore.training.optimizers import clip_gradients, implementation_of, set_learning_rate


@pytest.fixture
def model() -> nn.Module:
    return nn.ModuleDict(
        {"table": nn.Embedding(5, 3), "linear": nn.Linear(3, 2), "norm": nn.LayerNorm(2)}
    )


def test_only_matrices_decay(model):
    optimizer = build_adamw(model.parameters(), lr=0.1, weight_decay=0.5)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    found = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert found == {
        "table.weight": 0.5,
        "linear.weight": 0.5,
        "linear.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
    }


def test_a_marked_matrix_does_not_decay(model):
    model["linear"].weight._no_weight_decay = True
    optimizer = build_adamw([model["linear"].weight], lr=0.1, weight_decay=0.5)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0]


def test_groups_have_their_own_learning_rate_decay_and_clip(model):
    groups = {
        "slow": ParameterGroup(parameters=model["table"].parameters(), lr_scale=0.1, clip=2.0),
        "fast": ParameterGroup(parameters=[model["linear"].weight], weight_decay=0.0),
    }
    optimizer = build_adamw(groups, lr=1.0, weight_decay=0.3, clip=7.0)
    set_learning_rate(optimizer, 0.5)
    found = {g["name"]: (g["lr"], g["weight_decay"], g["clip"]) for g in optimizer.param_groups}
    assert found == {"slow": (0.05, 0.3, 2.0), "fast": (0.5, 0.0, 7.0)}


def test_each_group_is_clipped_to_its_own_norm_across_its_decaying_and_other_members(model):
    linear = model["linear"]
    groups = {
        "linear": ParameterGroup(parameters=linear.parameters(), clip=1.0),
        "table": ParameterGroup(parameters=model["table"].parameters(), clip=0.0),
    }
    optimizer = build_adamw(groups, lr=1.0)
    linear.weight.grad = torch.full((2, 3), 2.0)
    linear.bias.grad = torch.full((2,), 1.0)
    model["table"].weight.grad = torch.full((5, 3), 10.0)
    norm = clip_gradients(optimizer)
    assert math.isclose(norm, math.sqrt(6 * 4 + 2 * 1 + 15 * 100), rel_tol=1e-6)
    clipped = math.sqrt(float(linear.weight.grad.square().sum() + linear.bias.grad.square().sum()))
    assert math.isclose(clipped, 1.0, rel_tol=1e-5)  # torch adds 1e-6 to the norm
    assert torch.equal(model["table"].weight.grad, torch.full((5, 3), 10.0))


@pytest.mark.parametrize("implementation", ["auto", "fused", "foreach", "single"])
def test_every_kernel_is_reported_and_agrees_with_the_formula(implementation: str):
    parameter = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = build_adamw(
        [parameter], lr=0.1, weight_decay=0.2, betas=(0.9, 0.95), implementation=implementation
    )
    parameter.grad = torch.tensor([[0.5, 4.0]])
    optimizer.step()
    # The first step of Adam is the sign of the gradient; the decay is decoupled.
    expected = torch.tensor([[1.0, -2.0]]) * (1 - 0.1 * 0.2) - 0.1
    torch.testing.assert_close(parameter.data, expected, rtol=0, atol=1e-6)
    known = "fused" if implementation == "auto" else implementation
    assert implementation_of(optimizer) == known


def test_a_tied_parameter_is_trained_once(model):
    weight = model["linear"].weight
    optimizer = build_adamw([weight, weight], lr=0.1)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 1


def test_bad_groups_are_refused(model):
    with pytest.raises(ValueError, match="'none' is empty"):
        build_adamw({"none": ParameterGroup(parameters=[])}, lr=0.1)
    table = model["table"].weight
    both = {k: ParameterGroup(parameters=[table]) for k in ("a", "b")}
    with pytest.raises(ValueError, match="'b' and 'a' share a parameter"):
        build_adamw(both, lr=0.1)
    with pytest.raises(ValueError, match="requires_grad=False"):
        build_adamw(model["table"].requires_grad_(False).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="Known: auto, fused"):
        build_adamw(model["linear"].parameters(), lr=0.1, implementation="quick")
