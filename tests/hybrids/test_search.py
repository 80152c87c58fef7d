"""A search finds the better component, by its own optimizer, and leaves the rest as documented."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from manticore.evaluation.language import causal_loss
from manticore.hybrids.bilevel_step import SearchSettings
from manticore.hybrids.mixture import Mixture
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from manticore.hybrids.search import METHODS, search
from manticore.training import NonFiniteLossError, TrainConfig, train
from tests.models.tiny import tiny

VOCAB_SIZE, BATCH, SEQ_LEN = 24, 4, 12
Batches = Callable[[int], dict[str, Tensor]]
both_methods = pytest.mark.parametrize("method", METHODS)


def counting(stream: int) -> Batches:
    """Rows that count up by a step of their own, modulo the vocabulary."""

    def batch_at(step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(10_000 * stream + step)
        start = torch.randint(VOCAB_SIZE, (BATCH, 1), generator=generator)
        stride = torch.randint(1, 4, (BATCH, 1), generator=generator)
        ids = (start + stride * torch.arange(SEQ_LEN)) % VOCAB_SIZE
        return {"input_ids": ids, "labels": ids.clone()}

    return batch_at


TRAIN, VALID = counting(1), counting(2)


@pytest.fixture(scope="module")
def trained_weights() -> dict[str, Tensor]:
    """Weights of a component that has learned to count."""
    model = component_0()
    config = TrainConfig(steps=80, lr=1e-2, checkpoint_every=0)
    train(model, counting(3), config, loss_fn=causal_loss, progress=False)
    return {name: value.clone() for name, value in model.state_dict().items()}


def component_0(**overrides: Any) -> Any:
    return tiny("gpt2", 0, n_embd=16, n_layer=2, n_head=2, vocab_size=VOCAB_SIZE, **overrides)


def component_1() -> Any:
    return tiny("mamba", 1, hidden_size=12, num_hidden_layers=2, vocab_size=VOCAB_SIZE)


def fresh(weights: dict[str, Tensor] | None = None, **overrides: Any) -> ManticoreForCausalLM:
    """A hybrid of two components with a head row of its own; gpt2 first, random or trained."""
    first = component_0(**overrides)
    if weights is not None:
        first.load_state_dict(weights)
    hybrid = ManticoreForCausalLM.from_components([first, component_1()], num_blocks=2, seed=3)
    hybrid.set_mixture(torch.full((2, 2), 0.5), head=torch.full((2,), 0.5))
    return hybrid


def settings(**changes: Any) -> SearchSettings:
    quick = SearchSettings(steps=6, warmup_steps=2, mixture_lr=0.2, checkpoint_every=2, lr=1e-3)
    return replace(quick, **changes)


def run(hybrid: nn.Module, method: str = "gaea", folder: Path | None = None, **changes: Any) -> Any:
    budget = settings(**changes)
    return search(hybrid, TRAIN, VALID, method, budget, folder=folder, progress=False)


def state(hybrid: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in hybrid.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def rows_of(trajectory: list[dict[str, Any]]) -> list[tuple]:
    return [(entry["mixture"], entry["head"], entry["arch_loss"]) for entry in trajectory]


class TwoArms(nn.Module):
    """Looks like a hybrid: a mixture of two quadratics, of which one cannot become small."""

    def __init__(self, best: int) -> None:
        super().__init__()
        self.rows = Mixture(1, 2)
        self.floors = torch.tensor([1.0, 1.0]).index_fill(0, torch.tensor(best), 0.2)
        self.arms = nn.Parameter(torch.tensor([0.7, -0.7]))

    @property
    def backbone(self) -> TwoArms:
        return self

    def mixture_parameters(self) -> list[nn.Parameter]:
        return list(self.rows.parameters())

    def forward(self, **_: Any) -> Any:
        return SimpleNamespace(loss=self.rows.weights[0] @ (self.floors + self.arms**2))


# What it finds


@both_methods
@pytest.mark.parametrize("best", [0, 1])
def test_the_better_of_two_arms_is_found(method: str, best: int):
    arms = TwoArms(best)
    found = run(arms, method, steps=60, lr=0.02)
    assert found.mixture[0][best] > 0.9
    assert sum(found.mixture[0]) == pytest.approx(1, abs=2e-6)
    assert arms.arms.abs().max() < 0.7


@both_methods
@pytest.mark.parametrize("train_weights", [False, True])
def test_the_component_that_knows_the_data_is_found(
    method: str, train_weights: bool, trained_weights: dict[str, Tensor]
):
    hybrid = fresh(trained_weights)
    alone = causal_loss(hybrid, VALID(99)).item()
    found = run(hybrid, method, steps=60, train_weights=train_weights, lr=1e-4)
    assert found.head is not None
    assert found.head[0] > 0.85
    # A stream prefers itself (loyalty 2), so the blocks' rows matter less than the heads'.
    assert found.mixture[0][0] > 0.55
    assert found.mixture[1][0] > 0.8
    hybrid.eval()
    assert causal_loss(hybrid, VALID(99)).item() < alone - 0.1


def test_the_mixtures_gradient_equals_finite_differences():
    hybrid, ids, step = fresh().double(), VALID(0)["input_ids"], 1e-3

    def exact_loss() -> Tensor:  # the models' own loss rounds to float32
        logits = hybrid(input_ids=ids).logits[:, :-1]
        return functional.cross_entropy(logits.flatten(0, 1).double(), ids[:, 1:].flatten())

    hybrid.set_mixture(torch.tensor([[0.3, 0.7], [0.6, 0.4]]), head=torch.tensor([0.45, 0.55]))
    for parameter in hybrid.mixture_parameters():
        parameter.requires_grad_(True)
    gradients = torch.autograd.grad(exact_loss(), hybrid.mixture_parameters())
    for parameter, gradient in zip(hybrid.mixture_parameters(), gradients, strict=True):
        for index in range(parameter.numel()):
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[index] += sign * step
                    losses.append(exact_loss().item())
                    parameter.view(-1)[index] -= sign * step
            difference = (losses[0] - losses[1]) / (2 * step)
            # Central differences err by step^2; the mixture is read in float32.
            assert gradient.view(-1)[index].item() == pytest.approx(difference, rel=1e-3, abs=1e-5)


# What it moves


@both_methods
def test_the_warm_up_leaves_the_mixture_bitwise_alone(method: str):
    hybrid = fresh()
    hybrid.set_mixture(torch.tensor([[0.3, 0.7], [0.6, 0.4]]), head=torch.tensor([0.45, 0.55]))
    before = [p.detach().clone() for p in hybrid.mixture_parameters()]
    run(hybrid, method, steps=4, warmup_steps=4)
    for old, new in zip(before, hybrid.mixture_parameters(), strict=True):
        assert torch.equal(old, new)
    run(hybrid, method, steps=5, warmup_steps=4)
    for old, new in zip(before, hybrid.mixture_parameters(), strict=True):
        assert not torch.equal(old, new)


@both_methods
def test_exact_zeros_stay_zero_and_their_branch_stays_off(method: str):
    hybrid = fresh()
    hybrid.set_mixture(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), head=torch.tensor([0.5, 0.5]))
    found = run(hybrid, method, steps=4, warmup_steps=0)
    assert found.mixture[0] == [1.0, 0.0]
    assert found.mixture[1] != [0.5, 0.5]


def test_everything_moves_in_a_joint_search():
    hybrid = fresh()
    before = state(hybrid)
    run(hybrid)
    assert changed(before, state(hybrid)) == names_that_can_change(hybrid)


def test_only_the_mixture_moves_in_a_search_of_the_frozen_hybrid():
    hybrid = fresh()
    before = state(hybrid)
    run(hybrid, train_weights=False)
    mixture = {id(p) for p in hybrid.mixture_parameters()}
    expected = {name for name, p in hybrid.named_parameters() if id(p) in mixture}
    assert len(expected) == 2
    assert changed(before, state(hybrid)) == expected


def test_flags_and_gradients_are_as_before():
    hybrid = fresh()
    hybrid.freeze_mixture()
    flags = {name: p.requires_grad for name, p in hybrid.named_parameters()}
    run(hybrid, steps=3)
    assert {name: p.requires_grad for name, p in hybrid.named_parameters()} == flags
    assert all(p.grad is None for p in hybrid.parameters())


def names_that_can_change(hybrid: ManticoreForCausalLM) -> set[str]:
    """All parameters, tied names included: the loyalties are settings unless they are learned."""
    return {name for name in state(hybrid) if "loyalty" not in name}


# The mixture's optimizer is its own


@both_methods
def test_settings_of_the_weights_have_no_say_in_the_mixture(method: str):
    """With a learning rate of 0 the weights stand still, and their optimizer still runs."""
    trajectories = [
        rows_of(run(fresh(), method, lr=0.0, **changes).trajectory)
        for changes in ({}, {"weight_decay": 10.0, "clip": 1e-4})
    ]
    assert trajectories[0] == trajectories[1]
    assert trajectories[0][-1][0] != [[0.5, 0.5], [0.5, 0.5]]
    frozen = run(fresh(), method, train_weights=False, weight_decay=3.0, lr=5.0, clip=1e-9)
    for row, other in zip(rows_of(frozen.trajectory), trajectories[0], strict=True):
        assert torch.allclose(torch.tensor(row[0]), torch.tensor(other[0]), atol=1e-6)


@both_methods
def test_settings_of_the_mixture_have_no_say_in_the_weights_before_it_moves(method: str):
    results = []
    for changes in ({"mixture_lr": 0.01}, {"mixture_lr": 3.0, "mixture_clip": 1e-6}):
        hybrid = fresh()
        run(hybrid, method, steps=3, warmup_steps=3, **changes)
        results.append(state(hybrid))
    assert not changed(*results)


def test_the_mixture_does_not_decay():
    hybrid = fresh()
    hybrid.set_mixture(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), head=torch.tensor([0.3, 0.7]))
    run(hybrid, steps=4, mixture_lr=0.0, warmup_steps=0, weight_decay=50.0)
    torch.testing.assert_close(hybrid.mixture, torch.tensor([[0.9, 0.1], [0.2, 0.8]]))


# Faults


@both_methods
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_resumed_search_equals_an_uninterrupted_one(tmp_path: Path, method: str, stop: int):
    whole, broken = fresh(resid_pdrop=0.2), fresh(resid_pdrop=0.2)
    expected = run(whole, method, tmp_path / "whole")

    def dying(step: int) -> dict[str, Tensor]:
        if step == stop:
            raise InterruptedError
        return TRAIN(step)

    with pytest.raises(InterruptedError):
        search(broken, dying, VALID, method, settings(), folder=tmp_path / "b", progress=False)
    resumed = fresh(resid_pdrop=0.2)
    found = run(resumed, method, tmp_path / "b")
    assert rows_of(found.trajectory) == rows_of(expected.trajectory)
    assert not changed(state(whole), state(resumed))
    assert found.ledger["tokens"] == expected.ledger["tokens"]
    for name in ("weights.safetensors", "state.safetensors"):
        one, other = (load_file(tmp_path / f / "step-000006" / name) for f in ("whole", "b"))
        assert one.keys() == other.keys()
        assert not changed(one, other)
    assert any("exp_avg" in name for name in one) or method == "gaea"


def test_a_finished_search_is_read_back(tmp_path: Path):
    first, second = fresh(), fresh()
    found = run(first, folder=tmp_path)

    def never(step: int) -> dict[str, Tensor]:
        raise AssertionError("the search ran again")

    again = search(second, never, never, "gaea", settings(), folder=tmp_path, progress=False)
    assert again.trajectory == found.trajectory
    assert not changed(state(first), state(second))


@pytest.mark.parametrize("train_weights", [False, True])
def test_a_loss_on_the_architecture_split_that_is_not_finite_stops(
    tmp_path: Path, train_weights: bool
):
    """Half-way the mixture's batches turn bad; the checkpoint before is what remains."""

    class Broken(TwoArms):
        turns_bad = False

        def forward(self, **batch: Any) -> Any:
            output = super().forward()
            if batch["labels"] is None:
                output.loss = output.loss * torch.nan
            return output

    def valid(step: int) -> dict[str, Any]:
        return {**VALID(step), "labels": VALID(step)["labels"] if step < 4 else None}

    arms = Broken(0)
    budget = settings(train_weights=train_weights)
    with pytest.raises(NonFiniteLossError, match=r"loss at step 4.*step-000004") as raised:
        search(arms, TRAIN, valid, "gaea", budget, folder=tmp_path, progress=False)
    assert raised.value.checkpoint == tmp_path / "step-000004"
    weights = load_file(tmp_path / "step-000004" / "weights.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())


@both_methods
def test_a_spike_in_the_mixtures_gradient_is_forgotten(method: str):
    """One infinite gradient moves nothing and leaves nothing in the moments."""

    class Spiky(TwoArms):
        def forward(self, **batch: Any) -> Any:
            output = super().forward()
            if batch["labels"] is None:
                output.loss = output.loss + zero_with_infinite_slope(self.rows.weights[0, 0])
            return output

    def valid(step: int) -> dict[str, Any]:
        return {**VALID(step), "labels": None if step == 2 else VALID(step)["labels"]}

    arms = Spiky(0)
    budget = settings(steps=40, warmup_steps=0, train_weights=False)
    found = search(arms, TRAIN, valid, method, budget, progress=False)
    assert found.trajectory[2]["mixture"] == found.trajectory[1]["mixture"]
    assert found.mixture[0][0] > 0.8


def zero_with_infinite_slope(weight: Tensor) -> Tensor:
    return (weight - weight.detach()).abs().sqrt()


# The rest of the contract


def test_the_ledger_counts_the_tokens_of_weights_and_mixture():
    per_batch = BATCH * SEQ_LEN
    assert run(fresh(), steps=4).ledger["tokens"] == 4 * 2 * per_batch
    frozen = run(fresh(), steps=4, train_weights=False).ledger
    assert frozen["tokens"] == 4 * per_batch
    assert frozen["seconds"] > 0
    assert frozen["peak_memory_bytes"] > 1e6


def test_sequences_of_batches_are_cycled_and_log_gets_every_step():
    lines: list[dict[str, Any]] = []
    budget = settings(steps=5)
    found = search(
        fresh(), [TRAIN(0)], [VALID(0), VALID(1)], "gaea", budget, log=lines.append, progress=False
    )
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines == found.trajectory
    with pytest.raises(ValueError, match="at least one batch"):
        search(fresh(), [], [VALID(0)], progress=False)


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(ValueError, match="Known: darts-bilevel, gaea"):
        search(fresh(), TRAIN, VALID, "annealing", 3)
