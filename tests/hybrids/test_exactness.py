"""With one-hot rows a hybrid is its component; with boundless loyalty it is the ensemble.

The truth is always the stock Hugging Face model, which shares no module with the hybrid.
"""

import pytest
import torch
from torch import Tensor

from tests.hybrids.pairs import (
    VOCAB_SIZE,
    build,
    ids_for,
    largest_difference,
    member,
    members,
    one_hot,
    padded,
    random_rows,
    reloaded,
    stir,
)

EXACT = 1e-5  # float32 on tiny random models, as the design says
both_mixings = pytest.mark.parametrize("mixing", ["streams", "shared"])


def stock_logits(index: int, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return member(index)(ids).logits[..., :VOCAB_SIZE]


@torch.no_grad()
def worst_difference(hybrid, count: int, ids: Tensor, truths: list[Tensor]) -> float:
    worst = 0.0
    for k in range(count):
        hybrid.set_mixture(one_hot(hybrid.config.num_blocks, count, k))
        worst = max(worst, largest_difference(hybrid(ids).logits, truths[k]))
    return worst


@both_mixings
@pytest.mark.parametrize("num_blocks", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_one_hot_rows_give_the_component(mixing, num_blocks, count):
    ids = ids_for()
    truths = [stock_logits(k, ids) for k in range(count)]
    hybrid = build(members(count), num_blocks=num_blocks, mixing=mixing)
    assert worst_difference(hybrid, count, ids, truths) < EXACT


@both_mixings
@pytest.mark.parametrize(("num_blocks", "count"), [(1, 2), (2, 3), (4, 4), (4, 1)])
def test_one_hot_rows_give_the_component_after_save_and_load(mixing, num_blocks, count, tmp_path):
    ids = ids_for()
    hybrid = build(members(count), num_blocks=num_blocks, mixing=mixing)
    hybrid.set_mixture(random_rows(num_blocks, count))
    loaded = reloaded(hybrid, tmp_path)
    with torch.no_grad():
        assert largest_difference(loaded(ids).logits, hybrid(ids).logits) == 0
    truths = [stock_logits(k, ids) for k in range(count)]
    assert worst_difference(loaded, count, ids, truths) < EXACT


def test_exact_zeros_and_own_rows_survive_save_and_load(tmp_path):
    ids = ids_for()
    hybrid = build(members(3), num_blocks=2, loyalty=[0.5, float("inf"), 1.0])
    blocks = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.5, 0.5]])
    embed, head = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.5, 0.0])
    hybrid.set_mixture(blocks, embed=embed, head=head)
    loaded = reloaded(hybrid, tmp_path)
    assert torch.equal(loaded.mixture == 0, blocks == 0)
    assert loaded.model.rows.active_embed() == [2]
    assert loaded.model.rows.active_head(1) == [0, 1]
    with torch.no_grad():
        assert largest_difference(loaded(ids).logits, hybrid(ids).logits) == 0


@both_mixings
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_at_one_hot_equal_the_component_on_single_sequences(mixing, side):
    rows = [ids_for(1, length, seed=length)[0] for length in (9, 1, 6)]
    ids, mask = padded(rows, side)
    hybrid = build(members(4), num_blocks=2, mixing=mixing)
    for k in range(4):
        hybrid.set_mixture(one_hot(2, 4, k))
        with torch.no_grad():
            logits = hybrid(ids, attention_mask=mask).logits
        for row, real, got in zip(rows, mask.bool(), logits, strict=True):
            assert largest_difference(got[real], stock_logits(k, row[None])[0]) < EXACT


@both_mixings
def test_layers_cut_anywhere_give_the_component(mixing):
    partition = [[[0, 1], [1, 4]], [[0, 4], [4, 5]], [[0, 1], [1, 6]]]
    ids = ids_for()
    hybrid = build(members(3), num_blocks=2, mixing=mixing, partition=partition)
    assert worst_difference(hybrid, 3, ids, [stock_logits(k, ids) for k in range(3)]) < EXACT


@pytest.mark.parametrize("loyalty", ["inf", 60.0])
def test_streams_with_boundless_loyalty_are_the_logit_ensemble(loyalty):
    ids = ids_for()
    hybrid = build(members(4), num_blocks=2, loyalty=loyalty, stirred=False)
    stir(hybrid)
    hybrid.model.router.weight.data.zero_()
    hybrid.model.router.bias.data.zero_()
    truths = torch.stack([stock_logits(k, ids) for k in range(4)])
    for seed in range(3):
        rows, head = random_rows(2, 4, seed=seed), random_rows(4, seed=10 + seed)
        for gamma, own_head in ((rows[-1], None), (head, head)):
            hybrid.set_mixture(rows, head=own_head)
            ensemble = torch.einsum("k,kbtv->btv", gamma, truths)
            with torch.no_grad():
                assert largest_difference(hybrid(ids).logits, ensemble) < EXACT


def test_fresh_hybrid_has_a_uniform_mixture_and_a_router_that_changes_nothing():
    ids = ids_for()
    hybrid = build(members(3), num_blocks=2, stirred=False)
    without = build(members(3), num_blocks=2, stirred=False, router=False)
    assert torch.allclose(hybrid.mixture, torch.full((2, 3), 1 / 3))
    assert hybrid.model.router.weight.abs().max() == 0
    with torch.no_grad():
        assert torch.equal(hybrid(ids).logits, without(ids).logits)


@pytest.mark.parametrize(("mixing", "changes"), [("shared", False), ("streams", True)])
def test_a_path_that_switches_component_is_translated_in_streams_only(mixing, changes):
    ids = ids_for()
    hybrid = build(num_blocks=2, mixing=mixing)
    hybrid.set_mixture(one_hot(2, 2, [0, 1]))
    with torch.no_grad():
        before = hybrid(ids).logits
        after = stir(hybrid, seed=8)(ids).logits
    difference = largest_difference(before, after)
    assert difference > 0.1 if changes else difference == 0


def test_building_a_hybrid_leaves_the_given_models_as_they_were():
    ids = ids_for()
    for embeddings in ("own", "new"):
        given = members(3)
        build(given, num_blocks=2, embeddings=embeddings)
        with torch.no_grad():
            for k, model in enumerate(given):
                logits = model(ids).logits[..., :VOCAB_SIZE]
                assert largest_difference(logits, stock_logits(k, ids)) < EXACT, (embeddings, k)


def test_new_embeddings_are_small_tied_and_saved_once(tmp_path):
    hybrid = build(embeddings="new", num_blocks=2)
    for component, head in zip(hybrid.model.components, hybrid.heads, strict=True):
        table = component.get_input_embeddings().weight
        assert head.weight is table
        assert table.std().item() == pytest.approx(0.02, rel=0.1)
    loaded = reloaded(hybrid, tmp_path)
    assert all(
        head.weight is component.get_input_embeddings().weight
        for component, head in zip(loaded.model.components, loaded.heads, strict=True)
    )
    with torch.no_grad():
        assert largest_difference(loaded(ids_for()).logits, hybrid(ids_for()).logits) == 0
