"""Metrics count a whole split, trial by trial; one of them is what mad-lab calls accuracy."""

import math

import pytest
import torch

from manticore.evaluation.mad.metrics import MetricSums, batch_macro


def one_hot(predictions: list[list[int]], classes: int = 4) -> torch.Tensor:
    """Logits (1, B, T, V) that predict these classes."""
    return torch.nn.functional.one_hot(torch.tensor(predictions), classes).float()[None] * 20


def test_a_stray_class_counts_for_the_original_and_not_for_us() -> None:
    # Three right of four, classes 0 and 1 occur, one guess is class 2: torchmetrics gives 5/9.
    sums = MetricSums()
    sums.add(one_hot([[0, 0, 1, 2]]), torch.tensor([[0, 0, 1, 1]]))
    (metrics,) = sums.finish()
    assert metrics.token_accuracy == 0.75
    assert metrics.macro_accuracy == pytest.approx((1 + 1 / 2) / 2)
    assert metrics.batch_macro_accuracy == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_the_originals_example_gives_its_number() -> None:
    # Classes 0, 1 and 3 occur or are guessed: recalls 1, 2/3 and 0, as measured with torchmetrics.
    hits, support = torch.tensor([[1.0, 2.0, 0.0, 0.0]]), torch.tensor([1.0, 3.0, 0.0, 0.0])
    guesses = torch.tensor([[1.0, 2.0, 0.0, 1.0]])
    assert batch_macro(hits, support, guesses).item() == pytest.approx(0.5556, abs=1e-4)


def test_positions_that_are_not_scored_count_for_nothing() -> None:
    targets = torch.tensor([[1, -100, 2], [-100, -100, 3]])
    logits = one_hot([[1, 3, 2], [0, 1, 0]])
    sums = MetricSums()
    sums.add(logits, targets)
    (metrics,) = sums.finish()
    assert metrics.scored == 3
    assert metrics.token_accuracy == pytest.approx(2 / 3)
    assert metrics.exact_match == 0.5  # the first sequence has both of its scored positions right
    truth = torch.nn.functional.cross_entropy(logits[0].flatten(0, 1), targets.flatten())
    assert metrics.loss == pytest.approx(truth.item(), rel=1e-5)
    assert metrics.perplexity == pytest.approx(math.exp(truth.item()), rel=1e-5)
    assert metrics.to_dict()["perplexity"] == metrics.perplexity


def test_batches_of_any_size_give_the_numbers_of_the_whole_split() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 10, 7, 5, generator=generator)
    targets = torch.randint(0, 5, (10, 7), generator=generator)
    targets[torch.rand(10, 7, generator=generator) < 0.6] = -100
    whole, parts = MetricSums(), MetricSums()
    whole.add(logits, targets)
    for start, stop in ((0, 4), (4, 8), (8, 10)):
        parts.add(logits[:, start:stop], targets[start:stop])
    for one, other in zip(whole.finish(), parts.finish(), strict=True):
        for name in ("loss", "token_accuracy", "macro_accuracy", "exact_match"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-6), name
        # The original's number is a mean over batches, so it depends on them.
        assert one.batch_macro_accuracy != other.batch_macro_accuracy
    losses = [metrics.loss for metrics in whole.finish()]
    for row, loss in zip(logits, losses, strict=True):
        truth = torch.nn.functional.cross_entropy(row.flatten(0, 1), targets.flatten())
        assert loss == pytest.approx(truth.item(), rel=1e-5)


def test_a_split_without_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to score"):
        MetricSums().finish()
