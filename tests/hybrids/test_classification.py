"""Hybrids that classify: labels for sequences and tokens, with padding on either side."""

import math

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from manticore.hybrids.modeling_classification import (
    ManticoreForSequenceClassification,
    ManticoreForTokenClassification,
)
from tests.hybrids.pairs import ids_for, largest_difference, members, padded

BOTH = {
    ManticoreForSequenceClassification: AutoModelForSequenceClassification,
    ManticoreForTokenClassification: AutoModelForTokenClassification,
}
both_classes = pytest.mark.parametrize("cls", BOTH)
both_mixings = pytest.mark.parametrize("mixing", ["streams", "shared"])
both_sides = pytest.mark.parametrize("side", ["left", "right"])
ROWS = [ids_for(1, length, seed=length)[0] for length in (9, 1, 6)]
CLOSE = 1e-5


def classifier(cls, **options):
    hybrid = cls.from_components(members(2), num_blocks=2, **{"num_labels": 3, **options})
    torch.nn.init.normal_(hybrid.score.weight, generator=torch.Generator().manual_seed(0))
    return hybrid


@both_classes
@both_mixings
def test_classifiers_are_saved_whole_and_known_to_auto_classes(cls, mixing, tmp_path):
    names = {0: "good", 1: "bad", 2: "ugly"}
    hybrid = classifier(cls, mixing=mixing, id2label=names)
    hybrid.save_pretrained(tmp_path)
    loaded = BOTH[cls].from_pretrained(tmp_path)
    assert type(loaded) is cls
    assert loaded.config.id2label == names
    assert loaded.num_labels == 3
    with torch.no_grad():
        before, after = hybrid(ids_for()).logits, loaded(ids_for()).logits
    assert before.shape == ((2, 3) if cls is ManticoreForSequenceClassification else (2, 11, 3))
    assert largest_difference(before, after) == 0


@both_mixings
@both_sides
@torch.no_grad()
def test_a_padded_batch_of_sequences_has_the_labels_of_single_ones(mixing, side):
    hybrid = classifier(ManticoreForSequenceClassification, mixing=mixing)
    ids, mask = padded(ROWS, side)
    logits = hybrid(ids, attention_mask=mask).logits
    for row, got in zip(ROWS, logits, strict=True):
        assert largest_difference(got, hybrid(row[None]).logits[0]) < CLOSE


@both_mixings
@both_sides
@torch.no_grad()
def test_tokens_of_a_padded_batch_have_the_labels_of_single_sequences(mixing, side):
    hybrid = classifier(ManticoreForTokenClassification, mixing=mixing)
    ids, mask = padded(ROWS, side)
    logits = hybrid(ids, attention_mask=mask).logits
    for row, real, got in zip(ROWS, mask.bool(), logits, strict=True):
        assert largest_difference(got[real], hybrid(row[None]).logits[0]) < CLOSE


@torch.no_grad()
def test_a_sequence_is_read_at_its_last_token_that_is_not_padding():
    hybrid = classifier(ManticoreForSequenceClassification)
    for side in ("left", "right"):
        ids, mask = padded(ROWS, side)
        hidden = hybrid.model(ids, attention_mask=mask).last_hidden_state
        scores = functional.linear(hidden, hybrid.score.weight)
        last = [len(row) - 1 if side == "right" else 8 for row in ROWS]
        expected = torch.stack([scores[index, place] for index, place in enumerate(last)])
        assert largest_difference(hybrid(ids, attention_mask=mask).logits, expected) == 0
    # Without a mask, padding on the right is found by its token, which nothing before it sees.
    ids, mask = padded(ROWS, "right", pad=hybrid.config.pad_token_id)
    with_mask, without = hybrid(ids, attention_mask=mask).logits, hybrid(ids).logits
    assert largest_difference(with_mask, without) < CLOSE


def test_losses_are_those_of_the_problem():
    hybrid, ids = classifier(ManticoreForSequenceClassification), ids_for()
    labels = torch.tensor([2, 0])
    output = hybrid(ids, labels=labels)
    log_p = output.logits.log_softmax(-1)
    assert output.loss.item() == pytest.approx(-(log_p[0, 2] + log_p[1, 0]).item() / 2)
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in hybrid.parameters() if p.grad is not None)
    assert hybrid.model.rows.blocks.grad.abs().max() > 0

    several = classifier(
        ManticoreForSequenceClassification, problem_type="multi_label_classification"
    )
    goals = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    output = several(ids, labels=goals)
    truth = functional.binary_cross_entropy(output.logits.sigmoid(), goals)
    assert output.loss.item() == pytest.approx(truth.item(), rel=1e-5)

    number = classifier(ManticoreForSequenceClassification, num_labels=1)
    output = number(ids, labels=torch.tensor([0.3, -2.0]))
    errors = output.logits.flatten() - torch.tensor([0.3, -2.0])
    assert output.loss.item() == pytest.approx(errors.square().mean().item())


def test_unlabelled_tokens_are_not_scored():
    hybrid, ids = classifier(ManticoreForTokenClassification), ids_for()
    labels = torch.full_like(ids, -100)
    labels[0, 3], labels[1, 8] = 1, 2
    output = hybrid(ids, labels=labels)
    log_p = output.logits.log_softmax(-1)
    assert output.loss.item() == pytest.approx(-(log_p[0, 3, 1] + log_p[1, 8, 2]).item() / 2)


def test_a_classifier_takes_a_mixture_and_skips_what_has_no_weight():
    hybrid = classifier(ManticoreForSequenceClassification, mixing="shared")
    hybrid.set_mixture(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    calls = []
    for layer in hybrid.model.components[1].layers:
        layer.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        logits = hybrid(ids_for()).logits
        base = members(1)[0].base_model(ids_for()).last_hidden_state[:, -1]
    assert not calls
    expected = functional.linear(base, hybrid.score.weight[:, :32])
    assert largest_difference(logits, expected) < CLOSE * math.sqrt(32)
