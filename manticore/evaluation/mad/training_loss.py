"""A model's logits, and the loss that trials are trained on."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from manticore.evaluation.mad.metrics import IGNORE


def logits_of(output: Any) -> Tensor:
    """Logits (batch, seq, vocab) of whatever a model returned."""
    logits = getattr(output, "logits", output)
    if isinstance(logits, tuple):
        logits = logits[0]
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"The model returned {shape}; it must return logits (batch, seq, vocab), or an output "
            "with such .logits."
        )
    return logits


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy over the scored positions.

    Written with operations that can be mapped over stacked weights.

    Args:
        logits: (B, T, V).
        targets: (B, T), -100 is not scored.
    """
    scored = targets != IGNORE
    known = targets.where(scored, 0).unsqueeze(-1)
    losses = -logits.float().log_softmax(dim=-1).gather(-1, known).squeeze(-1)
    return (losses * scored).sum() / scored.sum().clamp(min=1)
