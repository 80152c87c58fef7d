"""How well a model does on one split, counted over the whole split.

Positions with target -100 are not scored. Several trials are measured at once: tensors have a
first dimension P for them.

Legend: P trials, B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORE = -100


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """One trial on one split."""

    loss: float
    """Mean cross entropy of the scored positions, in nats."""
    token_accuracy: float
    """Share of the scored positions that are right."""
    macro_accuracy: float
    """Mean over the classes that occur of the share of each that is right."""
    exact_match: float
    """Share of the sequences all of whose scored positions are right."""
    batch_macro_accuracy: float
    """What athms/mad-lab calls accuracy: see `batch_macro`."""
    scored: int
    """How many positions were scored."""

    @property
    def perplexity(self) -> float:
        """Exponential of the loss."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain data."""
        return {**dataclasses.asdict(self), "perplexity": self.perplexity}


class MetricSums:
    """Counts of P trials, batch by batch."""

    def __init__(self) -> None:
        self._sums: list[Tensor] | None = None
        self._batches: list[Tensor] = []
        self._scored = 0

    @torch.no_grad()
    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Count one batch.

        Args:
            logits: (P, B, T, V), any float dtype.
            targets: (B, T) int64, the same for all trials.
        """
        scored = targets != IGNORE  # (B, T)
        known = targets.where(scored, 0)
        log_probabilities = logits.float().log_softmax(dim=-1)
        picked = log_probabilities.gather(-1, known.expand(logits.shape[:-1]).unsqueeze(-1))
        predicted = logits.argmax(dim=-1)  # (P, B, T)
        right = (predicted == targets) & scored
        num_classes = logits.shape[-1]
        hits, support, guesses = _by_class(right, known, predicted, scored, num_classes)
        self._batches.append(batch_macro(hits, support, guesses))
        exact = (right | ~scored).all(dim=-1).sum(dim=-1)
        sums = [
            -(picked.squeeze(-1) * scored).sum(dim=(1, 2)).double(),
            hits.double(),
            support.double(),
            exact.double(),
            torch.tensor(float(targets.shape[0]), dtype=torch.float64, device=targets.device),
        ]
        self._sums = (
            sums if self._sums is None else [a + b for a, b in zip(self._sums, sums, strict=True)]
        )

    def finish(self) -> list[Metrics]:
        """The metrics of each trial, in order."""
        if self._sums is None:
            raise ValueError("There is nothing to score: the split has no batch.")
        loss, hits, support, exact, sequences = (t.cpu() for t in self._sums)
        scored, present = support.sum(), support > 0
        recalls = (hits / support.clamp(min=1))[:, present].mean(dim=1)
        batch = torch.stack(self._batches).double().mean(dim=0).cpu()
        return [
            Metrics(
                loss=float(loss[p] / scored),
                token_accuracy=float(hits[p].sum() / scored),
                macro_accuracy=float(recalls[p]),
                exact_match=float(exact[p] / sequences),
                batch_macro_accuracy=float(batch[p]),
                scored=int(scored),
            )
            for p in range(len(loss))
        ]


def batch_macro(hits: Tensor, support: Tensor, guesses: Tensor) -> Tensor:
    """The macro accuracy of one batch, as torchmetrics (and with it athms/mad-lab) counts it.

    A class that is guessed but does not occur counts as a recall of 0; one that is neither guessed
    nor occurs does not count. The mean over batches of this number is mad-lab's accuracy.

    Args:
        hits, guesses: (P, V) right guesses and all guesses of each class, at scored positions.
        support: (V,) occurrences of each class.

    Returns:
        (P,).
    """
    counted = (support > 0) | (guesses > 0)
    recall = hits / support.clamp(min=1)
    return recall.sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def _by_class(
    right: Tensor, targets: Tensor, predicted: Tensor, scored: Tensor, num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Hits (P, V), support (V,) and guesses (P, V), at scored positions."""
    trials = right.shape[0]
    zeros = torch.zeros(trials, num_classes, device=right.device)
    classes = targets.flatten().expand(trials, -1)
    hits = zeros.scatter_add(1, classes, right.flatten(1).float())
    support = zeros[0].scatter_add(0, targets.flatten(), scored.flatten().float())
    weights = scored.flatten().float().expand(trials, -1)
    guesses = zeros.scatter_add(1, predicted.flatten(1), weights)
    return hits, support, guesses
