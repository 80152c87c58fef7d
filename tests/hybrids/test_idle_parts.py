"""What a hybrid calls idle is what no gradient reaches, and the doctor believes nothing else."""

import pytest
import torch

from manticore.evaluation.conformance import doctor
from tests.hybrids.pairs import build, ids_for, members, one_hot

INF = float("inf")
TWO_OF_THREE = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
MIXED_LATER = torch.tensor([[0.5, 0.5, 0.0], [0.3, 0.4, 0.3]])
EMBED, HEAD = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.0, 0.5])
# Options of the hybrid, rows of its mixture (None: uniform), its own rows.
CASES = {
    "soft": ({}, None, {}),
    "one component": ({}, one_hot(2, 3, 0), {}),
    "switching": ({}, one_hot(2, 3, [1, 0]), {}),
    "two of three": ({}, TWO_OF_THREE, {}),
    "own rows": ({}, TWO_OF_THREE, {"embed": EMBED, "head": HEAD}),
    "one head": ({}, MIXED_LATER, {"head": one_hot(1, 3, 0)[0]}),
    "loyal": ({"loyalty": INF}, MIXED_LATER, {}),
    "loyal, no router": ({"loyalty": INF, "router": False}, MIXED_LATER, {"head": HEAD}),
    "loyal in the middle": ({"loyalty": [0.5, INF, 1.0]}, MIXED_LATER, {}),
    "learned loyalty": ({"learn_loyalty": True}, TWO_OF_THREE, {}),
    "learned loyalty, switching": ({"learn_loyalty": True}, one_hot(2, 3, [1, 0]), {}),
    "shared": ({"mixing": "shared"}, None, {}),
    "shared, switching": ({"mixing": "shared"}, one_hot(2, 3, [1, 0]), {}),
    "shared, two of three": ({"mixing": "shared"}, TWO_OF_THREE, {}),
    "shared, own rows": ({"mixing": "shared"}, TWO_OF_THREE, {"embed": EMBED, "head": HEAD}),
}


def hybrid_of(case):
    options, mixture, own = CASES[case]
    hybrid = build(members(3), num_blocks=2, **options)
    if mixture is not None:
        hybrid.set_mixture(mixture, **own)
    return hybrid


def without_gradient(hybrid):
    ids = ids_for(3, 20)
    hybrid(ids, labels=ids).loss.backward()
    return {
        name
        for name, parameter in hybrid.named_parameters()
        if parameter.grad is None or parameter.grad.abs().sum() == 0
    }


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_idle_parameters_are_those_that_no_gradient_reaches(case, pruned):
    hybrid = hybrid_of(case)
    if pruned:
        hybrid = hybrid.prune()
    idle = {id(parameter) for parameter in hybrid.idle_parameters()}
    named = {name for name, parameter in hybrid.named_parameters() if id(parameter) in idle}
    assert named == without_gradient(hybrid)
    assert bool(named) == ("soft" not in case and case != "shared")


@pytest.mark.parametrize("pruned", [False, True])
def test_a_path_passes_the_doctor_who_says_what_is_idle(pruned):
    hybrid = hybrid_of("switching")
    report = doctor(hybrid.prune() if pruned else hybrid)
    assert report.passed, str(report)
    assert "tensors are idle by design" in report["gradient-reach"].detail


def test_a_fault_in_a_branch_that_runs_is_found_on_a_path():
    hybrid = hybrid_of("switching")  # mamba, then gpt_neox
    mlp = hybrid.model.components[0].layers[3].mlp
    forward = type(mlp).forward
    mlp.forward = lambda x: forward(mlp, x).detach()
    finding = doctor(hybrid, ["gradient-reach"])["gradient-reach"]
    assert finding.status == "fail"
    assert "model.components.0.layers.3.mlp" in finding.detail


def test_a_parameter_is_not_idle_because_the_model_says_so(monkeypatch):
    hybrid = hybrid_of("soft")
    monkeypatch.setattr(type(hybrid), "idle_parameters", lambda self: [self.heads[0].weight])
    finding = doctor(hybrid, ["gradient-reach"])["gradient-reach"]
    assert finding.status == "fail"
    assert "heads.0.weight (has one, and is called idle)" in finding.detail
