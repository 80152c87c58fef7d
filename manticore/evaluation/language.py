"""Language modelling losses by kind of text: nats per token and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from manticore.text.packing import PackedText, evaluation_batches

LogProbabilities = Callable[[Tensor], Tensor]


def losses_by_kind(
    model: nn.Module, packs: Mapping[str, PackedText], batch_size: int = 32
) -> dict[str, dict[str, float]]:
    """Mean loss of a causal language model on each kind of text.

    Args:
        model: called as `model(input_ids).logits`; put into eval mode for the duration.
        packs: kind -> packed rows.

    Returns:
        `{"loss": nats per predicted token, "bits_per_byte": ...}`, each by kind and with "mean",
        the plain mean over the kinds.
    """
    was_training = model.training
    model.eval()
    try:
        return ensemble_losses([model], packs, "logits", batch_size)
    finally:
        model.train(was_training)


def ensemble_losses(
    models: Sequence[nn.Module],
    packs: Mapping[str, PackedText],
    how: str,
    batch_size: int = 32,
) -> dict[str, dict[str, float]]:
    """Losses of the uniform ensemble of some models: mean of `logits` or of `probabilities`."""
    rules = {"logits": mean_of_logits, "probabilities": mean_of_probabilities}
    if how not in rules:
        raise ValueError(f"Unknown ensemble {how!r}. Known: {', '.join(rules)}.")
    loss = {kind: _mean_nats(models, pack, rules[how], batch_size) for kind, pack in packs.items()}
    bits = {kind: pack.bits_per_byte(loss[kind]) for kind, pack in packs.items()}
    return {"loss": with_mean(loss), "bits_per_byte": with_mean(bits)}


def with_mean(values: Mapping[str, float]) -> dict[str, float]:
    """Put the plain mean over the kinds in front."""
    return {"mean": math.fsum(values.values()) / len(values), **values}


def mean_of_logits(logits: Sequence[Tensor]) -> Tensor:
    """Log probabilities of the mean of logits: (batch, seq, vocab)."""
    return torch.stack(list(logits)).mean(dim=0).float().log_softmax(dim=-1)


def mean_of_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Log of the mean of the models' probabilities: (batch, seq, vocab)."""
    stacked = torch.stack([one.float().log_softmax(dim=-1) for one in logits])
    return stacked.logsumexp(dim=0) - math.log(len(logits))


@torch.no_grad()
def _mean_nats(
    models: Sequence[nn.Module],
    pack: PackedText,
    rule: Callable[[Sequence[Tensor]], Tensor],
    batch_size: int,
) -> float:
    device = next(models[0].parameters()).device
    total = 0.0
    for batch in evaluation_batches(pack, batch_size):
        ids = batch["input_ids"].to(device)
        logits = [model(input_ids=ids, use_cache=False).logits[:, :-1] for model in models]
        total += _nats(rule(logits), ids[:, 1:])
    return total / pack.n_predicted


def _nats(log_probabilities: Tensor, targets: Tensor) -> float:
    flat = log_probabilities.flatten(0, 1)
    return float(functional.nll_loss(flat, targets.flatten(), reduction="sum").double())


def causal_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Training loss of a batch from `BatchSource`: mean nats per predicted token."""
    return model(input_ids=batch["input_ids"], labels=batch["labels"], use_cache=False).loss
