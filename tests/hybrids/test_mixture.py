"""Mixture weights: exact zeros, true gradients, rows that stay on the simplex."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from manticore.hybrids.mixture import Mixture
from tests.hybrids.pairs import build, ids_for, members, random_rows

both_mixings = pytest.mark.parametrize("mixing", ["streams", "shared"])
ZEROS = torch.tensor([[0.3, 0.0, 0.7], [0.6, 0.4, 0.0]])


def loss_of(hybrid, ids: Tensor) -> Tensor:
    # In float64: transformers' own loss rounds to float32, too coarse for a difference.
    logits = hybrid(ids, use_cache=False).logits.double()
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def slope(hybrid, parameter: Tensor, index: tuple[int, ...], ids: Tensor) -> float:
    """Central difference with its leading error taken off (Richardson)."""

    def difference(step: float) -> float:
        losses = []
        for sign in (1, -1):
            parameter[index] += sign * step
            losses.append(loss_of(hybrid, ids).item())
            parameter[index] -= sign * step
        return (losses[0] - losses[1]) / (2 * step)

    return (4 * difference(0.02) - difference(0.04)) / 3


@both_mixings
@pytest.mark.parametrize("zeros", [False, True])
def test_gradient_of_the_mixture_is_the_slope_of_the_loss(mixing, zeros):
    settings = {"learn_loyalty": True} if mixing == "streams" else {}
    hybrid = build(members(3), num_blocks=2, mixing=mixing, **settings).double()
    hybrid.model.rows.double()
    rows = ZEROS if zeros else random_rows(2, 3)
    head = torch.tensor([0.5, 0.0, 0.5]) if zeros else random_rows(3, seed=4)
    hybrid.set_mixture(rows, embed=random_rows(3, seed=3), head=head)
    ids = ids_for(2, 7)
    loss_of(hybrid, ids).backward()
    loyalty = [hybrid.model.loyalty.value] if mixing == "streams" else []
    checked = [*hybrid.mixture_parameters(), *loyalty]
    largest = max(parameter.grad.abs().max().item() for parameter in checked)
    for parameter in checked:
        for place in np.ndindex(*parameter.shape):
            gradient = parameter.grad[place].item()
            if math.isinf(parameter[place].item()):
                assert gradient == 0
            else:
                expected = slope(hybrid, parameter, place, ids)
                # Mixture weights are float32 inside, which leaves about 1e-5 of a slope.
                assert gradient == pytest.approx(expected, rel=1e-3, abs=1e-4 * largest), place


@both_mixings
def test_exact_zeros_make_no_gradient_anywhere_infinite_or_nan(mixing):
    hybrid = build(members(3), num_blocks=2, mixing=mixing).train()
    for rows in (ZEROS, torch.eye(3)[[0, 2]]):
        hybrid.zero_grad()
        hybrid.set_mixture(rows)
        loss_of(hybrid, ids_for()).backward()
        gradients = {n: p.grad for n, p in hybrid.named_parameters() if p.grad is not None}
        assert "model.rows.blocks" in gradients
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_zeros_stay_zeros_and_rows_stay_on_the_simplex_under_an_optimizer():
    hybrid = build(members(3), num_blocks=2)
    hybrid.set_mixture(ZEROS)
    optimizer = torch.optim.AdamW(hybrid.mixture_parameters(), lr=0.3)
    for seed in range(5):
        loss_of(hybrid, ids_for(seed=seed)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(hybrid.mixture == 0, ZEROS == 0)
    assert torch.allclose(hybrid.mixture.sum(-1), torch.ones(2))
    assert (hybrid.mixture - ZEROS).abs().max() > 0.05


def test_a_branch_switched_off_and_on_again_is_noticed():
    mixture = Mixture(1, 2)
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert mixture.active(0) == [0, 1]
    for rows, expected in ((one, [0]), (other, [1]), (one, [0])):
        mixture.set(rows)
        assert mixture.active(0) == expected
        mixture.set(rows, embed=rows[0], head=rows[0])
        assert mixture.active_embed() == mixture.active_head(0) == expected
        mixture.set(rows)
    mixture.load_state_dict({"blocks": other.log()})
    assert mixture.active(0) == [1]


def test_new_rows_at_the_address_of_old_ones_are_noticed():
    memory = np.array([[0.0, -np.inf]], dtype=np.float32)
    mixture = Mixture(1, 2)
    mixture.blocks = nn.Parameter(torch.from_numpy(memory))
    assert mixture.active(0) == [0]
    memory[:] = [[-np.inf, 0.0]]
    mixture.blocks = nn.Parameter(torch.from_numpy(memory))
    assert mixture.active(0) == [1]


def test_a_hybrid_made_in_inference_mode_runs():
    with torch.inference_mode():
        hybrid = build(num_blocks=2)
        assert hybrid(ids_for()).logits.isfinite().all()


def test_setting_rows_keeps_the_parameters_that_an_optimizer_holds():
    hybrid = build(num_blocks=2)
    before = hybrid.mixture_parameters()
    hybrid.set_mixture(random_rows(2, 2, seed=5))
    assert all(a is b for a, b in zip(before, hybrid.mixture_parameters(), strict=True))
    assert torch.allclose(hybrid.mixture, random_rows(2, 2, seed=5))


def test_freezing_reaches_rows_that_are_set_later():
    hybrid = build(num_blocks=2)
    hybrid.freeze_mixture()
    hybrid.set_mixture(random_rows(2, 2), embed=torch.tensor([0.5, 0.5]))
    assert len(hybrid.mixture_parameters()) == 2
    assert not any(p.requires_grad for p in hybrid.mixture_parameters())
    hybrid.freeze_mixture(False)
    assert all(p.requires_grad for p in hybrid.mixture_parameters())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.5, -0.5], [0.5, 0.5]], "negative"),
        ([[float("nan"), 1.0], [0.5, 0.5]], "non-finite"),
        ([[0.6, 0.6], [0.5, 0.5]], "not to 1"),
        ([[0.0, 0.0], [0.5, 0.5]], "not to 1"),
        ([[0.5, 0.5]], r"this hybrid needs \(2, 2\)"),
        ([0.5, 0.5], r"this hybrid needs \(2, 2\)"),
    ],
)
def test_rows_off_the_simplex_are_refused_and_change_nothing(rows, message):
    hybrid = build(num_blocks=2)
    before = copy.deepcopy(hybrid.model.rows.state_dict())
    with pytest.raises(ValueError, match=message):
        hybrid.set_mixture(torch.tensor(rows))
    with pytest.raises(ValueError, match="head"):
        hybrid.set_mixture(random_rows(2, 2), head=torch.tensor([0.9, 0.2]))
    after = hybrid.model.rows.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_parameters_are_split_between_mixture_projectors_and_components():
    hybrid = build(members(3), num_blocks=2, learn_loyalty=True)
    groups = [
        hybrid.mixture_parameters(),
        hybrid.projector_parameters(),
        *(hybrid.component_parameters(k) for k in range(3)),
    ]
    ids = [id(parameter) for group in groups for parameter in group]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in hybrid.parameters()}
