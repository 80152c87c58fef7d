"""Recall probes: perfect readers of the context score one, models that ignore it score chance."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from manticore.evaluation.recall import (
    RecallProbe,
    induction_rows,
    mqar_rows,
    recall_probes,
    recall_tokens,
)

VOCAB = 256
TOKENS = range(8, VOCAB)


class Reader(nn.Module):
    """Predicts what followed the last token when it stood in the row before; else nothing."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))
        self.reads = reads

    def forward(self, input_ids, use_cache):
        logits = torch.zeros(*input_ids.shape, VOCAB)
        if not self.reads:
            return SimpleNamespace(logits=logits)
        for row, ids in enumerate(input_ids.tolist()):
            for t in range(len(ids)):
                # The first time counts: later ones may be fillers that were drawn by chance.
                before = next((s for s in range(t) if ids[s] == ids[t]), None)
                if before is not None:
                    logits[row, t] = self.scale * functional.one_hot(
                        torch.tensor(ids[before + 1]), VOCAB
                    )
        return SimpleNamespace(logits=logits)


def test_a_perfect_reader_scores_one_on_both_probes():
    found = recall_probes(Reader(True), TOKENS)
    assert found["induction_accuracy"] == 1.0
    assert found["induction_gain"] == pytest.approx(torch.tensor(VOCAB).log().item(), abs=1e-3)
    assert found["mqar_accuracy"] == 1.0


def test_a_model_that_ignores_its_context_gains_nothing():
    found = recall_probes(Reader(False), TOKENS)
    assert found["induction_accuracy"] == 0.0
    assert found["induction_gain"] == 0.0
    # It always takes the first value shown: right for one of the four keys of every row.
    assert found["mqar_accuracy"] == found["mqar_chance"] == 0.25


def test_rows_repeat_without_special_tokens_and_follow_from_the_seed():
    rows = induction_rows(TOKENS, RecallProbe())
    assert torch.equal(rows[:, :32], rows[:, 32:])
    assert rows.min() >= 8
    assert rows.max() < VOCAB
    assert torch.equal(rows, induction_rows(TOKENS, RecallProbe()))
    assert not torch.equal(rows, induction_rows(TOKENS, RecallProbe(seed=1)))
    ids, targets = mqar_rows(TOKENS, RecallProbe())
    assert ids.shape == targets.shape == (64, 32)
    assert torch.equal((targets >= 0).sum(dim=1), torch.full((64,), 4))
    # Every answer was shown with the key that asks for it.
    for row, wanted in zip(ids.tolist(), targets.tolist(), strict=True):
        pairs = dict(zip(row[0:8:2], row[1:8:2], strict=True))
        assert all(pairs[row[t]] == want for t, want in enumerate(wanted) if want >= 0)


def test_tokens_are_those_of_the_text_without_special_ones():
    odd = np.arange(101, 201, 2)
    rows = [odd.reshape(2, 25), np.array([[2, 150, 2]])]
    tokens = recall_tokens(rows, VOCAB, special=[2, 199])
    assert tokens == sorted({*odd.tolist(), 150} - {199})
    assert set(induction_rows(tokens, RecallProbe()).unique().tolist()) <= set(tokens)
    ids, targets = mqar_rows(tokens, RecallProbe())
    assert set(ids.unique().tolist()) | set(targets.unique().tolist()) <= {*tokens, -100}


def test_text_of_few_tokens_gives_the_vocabulary_instead():
    assert recall_tokens([np.array([[5, 9, 2]])], 60, special=[0, 2]) == [1, *range(3, 60)]


def test_the_model_keeps_its_mode():
    model = Reader(False).train()
    recall_probes(model, TOKENS)
    assert model.training
