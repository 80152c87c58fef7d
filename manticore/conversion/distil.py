"""Losses of the training stage: cross-entropy, and the teacher's distribution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from manticore.config.transfer_recipe import DistilConfig
from manticore.conversion.align import LossFunction


def distillation_loss(teacher: nn.Module, config: DistilConfig) -> LossFunction:
    """(1 - w) cross-entropy + w t^2 KL(teacher_t || student_t), per predicted token.

    Hinton, Vinyals and Dean, 2015 (arXiv:1503.02531), section 2; t^2 keeps the gradient's size.
    """

    def loss(model: Any, batch: Mapping[str, Any]) -> Tensor:
        ids, labels = batch["input_ids"], batch["labels"]
        with torch.no_grad():
            told = teacher(input_ids=ids, use_cache=False).logits[:, :-1]
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        scored = labels[:, 1:] != -100
        return mixed_loss(logits[scored], told[scored], labels[:, 1:][scored], config)

    return loss


def mixed_loss(logits: Tensor, told: Tensor, labels: Tensor, config: DistilConfig) -> Tensor:
    """The same for (tokens, vocab) logits of student and teacher and (tokens,) labels."""
    cross = functional.cross_entropy(logits.float(), labels)
    t = config.temperature
    ours, theirs = ((x.float() / t).log_softmax(-1) for x in (logits, told))
    divergence = functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")
    return (1 - config.weight) * cross + config.weight * t * t * divergence
