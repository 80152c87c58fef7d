"""A pruned hybrid is the same function with fewer layers, projectors and components."""

import pytest
import torch

from tests.hybrids.pairs import (
    build,
    ids_for,
    largest_difference,
    member,
    members,
    one_hot,
    random_rows,
    reloaded,
)
from tests.models.tiny import tiny

both_mixings = pytest.mark.parametrize("mixing", ["streams", "shared"])

# Component 1, the widest, does nothing; component 2 has only its second block.
IDLE = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.3, 0.0, 0.2, 0.5]])
BATCHES = [{"input_ids": ids_for(4, 30, seed=seed)} for seed in range(4)]


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def logits_of(hybrid, **options):
    return hybrid(ids_for(), **options).logits


@both_mixings
@pytest.mark.parametrize("when", ["fresh", "loaded"])
def test_removing_what_has_no_weight_changes_nothing(mixing, when, tmp_path):
    components = [member(0), tiny("mamba", vocab_size=61, hidden_size=56), member(2), member(3)]
    hybrid = build(components, num_blocks=2, mixing=mixing, host=2)
    hybrid.set_mixture(IDLE)
    if when == "loaded":
        hybrid = reloaded(hybrid, tmp_path / "whole")
    before = logits_of(hybrid)
    pruned = hybrid.prune()
    assert pruned.config.num_components == 3
    assert pruned.config.host == 1
    assert [c.config.num_hidden_layers for c in pruned.model.components] == [4, 3, 3]
    assert pruned.config.partition == [[[0, 2], [2, 4]], [[0, 0], [0, 3]], [[0, 0], [0, 3]]]
    assert largest_difference(pruned.mixture, IDLE[:, [0, 2, 3]]) < 1e-7
    after = logits_of(pruned)
    # The router reads fewer streams, and a shorter sum may round differently.
    assert largest_difference(after, before) <= (5e-6 if mixing == "streams" else 0)
    assert largest_difference(logits_of(reloaded(pruned, tmp_path / "pruned")), after) == 0
    # The hybrid that was given is as it was.
    assert hybrid.config.num_components == 4
    assert [c.config.num_hidden_layers for c in hybrid.model.components] == [4, 4, 6, 5]
    assert largest_difference(logits_of(hybrid), before) == 0


@both_mixings
def test_own_rows_of_embeddings_and_heads_are_pruned_too(mixing):
    hybrid = build(members(3), num_blocks=2, mixing=mixing)
    rows = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])
    ends = torch.tensor([0.45, 0.55, 0.0]), torch.tensor([0.0, 0.04, 0.96])
    hybrid.set_mixture(rows, embed=ends[0], head=ends[1])
    pruned = hybrid.prune(0.1)
    assert pruned.config.num_components == 3  # component 2 still has the head
    assert pruned.model.rows.active_head(0) == [2]
    hybrid.set_mixture(rows, embed=ends[0], head=torch.tensor([0.0, 0.0, 1.0]))
    assert largest_difference(logits_of(pruned), logits_of(hybrid)) == 0


def test_threshold_keeps_larger_weights_and_normalises_them():
    hybrid = build(members(3), num_blocks=2)
    hybrid.set_mixture(torch.tensor([[0.05, 0.35, 0.6], [0.8, 0.02, 0.18]]))
    expected = torch.tensor([[0.0, 0.35 / 0.95, 0.6 / 0.95], [0.8 / 0.98, 0.0, 0.18 / 0.98]])
    pruned = hybrid.prune(0.06)
    assert torch.allclose(pruned.mixture, expected)
    assert torch.equal(pruned.mixture == 0, expected == 0)
    hybrid.set_mixture(expected)
    assert largest_difference(logits_of(pruned), logits_of(hybrid)) < 1e-5
    for threshold in (-0.1, 1.0):
        with pytest.raises(ValueError, match="from 0 to below 1"):
            hybrid.prune(threshold)


@both_mixings
@pytest.mark.parametrize("k", [0, 1, 2])
def test_one_component_alone_is_as_large_as_it_was(mixing, k, tmp_path):
    rows = 0.9 * one_hot(2, 3, k) + 0.1 * random_rows(2, 3)
    hybrid = build(members(3, vocab_size=61), num_blocks=2, mixing=mixing, learn_loyalty=False)
    hybrid.set_mixture(rows)
    pruned = hybrid.prune(one_hot=True)
    # On top of the component's own: one log weight, of 1, for each block.
    assert count(pruned) == count(member(k, vocab_size=61)) + 2
    with torch.no_grad():
        truth = member(k, vocab_size=61)(ids_for()).logits
    assert largest_difference(logits_of(pruned), truth) < 1e-5
    again = reloaded(pruned, tmp_path)
    assert count(again) == count(pruned)
    assert largest_difference(logits_of(again), logits_of(pruned)) == 0


def test_a_pruned_branch_cannot_be_given_weight_again():
    hybrid = build(num_blocks=2)
    hybrid.set_mixture(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    pruned = hybrid.prune()
    pruned.set_mixture(torch.tensor([[1.0, 0.0], [0.9, 0.1]]))
    with pytest.raises(ValueError, match="Component 1 has no layers left in block 0"):
        pruned.set_mixture(torch.tensor([[0.9, 0.1], [0.9, 0.1]]))
    assert torch.allclose(pruned.mixture, torch.tensor([[1.0, 0.0], [0.9, 0.1]]))


def test_layers_that_know_their_index_stay_where_they_are(tmp_path):
    hybrid = build([tiny("gpt2"), member(1)], num_blocks=2)  # scales by the inverse index
    hybrid.set_mixture(torch.tensor([[0.0, 1.0], [0.5, 0.5]]))
    pruned = hybrid.prune()
    assert pruned.config.partition[0] == [[0, 2], [2, 4]]
    assert largest_difference(logits_of(pruned), logits_of(hybrid)) == 0
    # Its first layers do not have to move, so the last ones can go.
    hybrid.set_mixture(torch.tensor([[0.5, 0.5], [0.0, 1.0]]))
    pruned = hybrid.prune()
    assert pruned.config.partition[0] == [[0, 2], [2, 2]]
    assert len(pruned.model.components[0].h) == 2
    again = reloaded(pruned, tmp_path)
    assert largest_difference(logits_of(again), logits_of(hybrid)) == 0


def test_mixture_and_training_flags_survive_in_half_precision():
    hybrid = build(members(3), num_blocks=2).to(torch.bfloat16)
    hybrid.model.rows.float()
    hybrid.freeze_mixture()
    hybrid.set_mixture(torch.tensor([[0.3, 0.7, 0.0], [1 / 3, 2 / 3, 0.0]]))
    pruned = hybrid.prune()
    assert pruned.config.num_components == 2
    assert pruned.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in pruned.mixture_parameters())
    assert not any(p.requires_grad for p in pruned.mixture_parameters())
    assert largest_difference(pruned.mixture, hybrid.mixture[:, :2]) < 1e-7
    assert (
        largest_difference(logits_of(pruned), logits_of(hybrid)) < 0.05
    )  # bfloat16 rounds at 1/256


def test_pruning_with_text_refits_the_translators_of_the_smaller_hybrid_only():
    hybrid = build(num_blocks=2)
    before = [p.clone() for p in hybrid.projector_parameters()]
    plain, refitted = (hybrid.prune(one_hot=True, batches=b) for b in (None, BATCHES))
    assert all(
        torch.equal(a, b) for a, b in zip(before, hybrid.projector_parameters(), strict=True)
    )
    hybrid.set_mixture(one_hot(2, 2, [0, 1]))
    plain, refitted = (hybrid.prune(batches=b) for b in (None, BATCHES))
    assert largest_difference(logits_of(plain), logits_of(hybrid)) == 0
    assert largest_difference(logits_of(refitted), logits_of(hybrid)) > 0.1
