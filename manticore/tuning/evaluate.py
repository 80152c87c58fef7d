"""Measure a fine-tuned model on a split: loss on answers, labels, generated answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from manticore.config.adapter_recipe import AdaptEvaluationConfig
from manticore.evaluation.language import losses_by_kind
from manticore.tuning.batches import collate
from manticore.tuning.data import TuningData
from manticore.tuning.encoding import IGNORED, Encoded
from manticore.tuning.metrics import accuracy, exact_match, find_answer, matthews

LABEL_METRICS = ("accuracy", "matthews")


def measure(
    model: nn.Module,
    data: TuningData,
    split: str,
    config: AdaptEvaluationConfig,
    tokenizer: Any,
    *,
    generate: bool = True,
) -> dict[str, float]:
    """Every metric that the recipe asks for, and the loss: metric -> value.

    The loss is in nats: for each scored token (answers only), for each label, or, for running
    text, the mean over the kinds.

    Args:
        split: train, validation or test.
        generate: False leaves the generated answers out, which take longest.
    """
    was_training = model.training
    model.eval()
    try:
        found = _measure(model, data, split, config, tokenizer, generate)
    finally:
        model.train(was_training)
    return found


def tuning_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Training loss of a batch: mean nats for each scored token, or for each label."""
    labels = batch["labels"]
    arguments = {"input_ids": batch["input_ids"], "attention_mask": batch.get("attention_mask")}
    if labels.ndim == 1:
        return functional.cross_entropy(model(**arguments).logits.float(), labels)
    logits = model(**arguments, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(
        logits.float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    )


@torch.no_grad()
def _measure(
    model: nn.Module,
    data: TuningData,
    split: str,
    config: AdaptEvaluationConfig,
    tokenizer: Any,
    generate: bool,
) -> dict[str, float]:
    if data.packs:
        losses = losses_by_kind(model, data.packs[split], config.batch_size)
        return {"loss": losses["loss"]["mean"], "bits-per-byte": losses["bits_per_byte"]["mean"]}
    rows = data.rows[split]
    if data.labels:
        return _label_measures(model, data, rows, config.batch_size)
    found = _answer_measures(model, data, rows, config.batch_size)
    if generate and "exact-match" in config.metrics:
        some = rows[: config.generate_rows]
        answers = generate_answers(model, some, config, tokenizer)
        pattern = config.answer_pattern
        # A reference that is a worked answer is read as the model's is; a bare one stays whole.
        references = [find_answer(row.reference, pattern) or row.reference for row in some]
        chosen = [find_answer(answer, pattern) for answer in answers]
        found["exact-match"] = exact_match(chosen, references)
    return found


def _answer_measures(
    model: nn.Module, data: TuningData, rows: Sequence[Encoded], batch_size: int
) -> dict[str, float]:
    total = 0.0
    scored = sum(row.n_scored for row in rows)
    for batch in _batches(rows, batch_size, data.pad, model):
        arguments = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        logits = model(**arguments, use_cache=False).logits[:, :-1].float()
        loss = functional.cross_entropy(
            logits.flatten(0, 1),
            batch["labels"][:, 1:].flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )
        total += float(loss.double())
    n_bytes = sum(row.scored_bytes for row in rows)
    return {"loss": total / scored, "bits-per-byte": total / (math.log(2) * n_bytes)}


def _label_measures(
    model: nn.Module, data: TuningData, rows: Sequence[Encoded], batch_size: int
) -> dict[str, float]:
    predicted: list[int] = []
    total = 0.0
    for batch in _batches(rows, batch_size, data.pad, model):
        arguments = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        logits = model(**arguments).logits.float()
        total += float(functional.cross_entropy(logits, batch["labels"], reduction="sum"))
        predicted += logits.argmax(dim=-1).tolist()
    wanted = [int(row.labels[0]) for row in rows]
    return {
        "loss": total / len(rows),
        "accuracy": accuracy(predicted, wanted),
        "matthews": matthews(predicted, wanted, len(data.labels)),
    }


def generate_answers(
    model: Any, rows: Sequence[Encoded], config: AdaptEvaluationConfig, tokenizer: Any
) -> list[str]:
    """What the model says to each prompt: greedy, until the end of text or `max_new_tokens`."""
    end = tokenizer.eos_token_id
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt))
    answers: dict[int, str] = {}
    device = next(model.parameters()).device
    for start in range(0, len(order), config.batch_size):
        chosen = order[start : start + config.batch_size]
        length = max(len(rows[i].prompt) for i in chosen)
        ids = torch.full((len(chosen), length), end)
        mask = torch.zeros_like(ids)
        for place, i in enumerate(chosen):  # on the left: generation goes on at the right
            size = len(rows[i].prompt)
            ids[place, length - size :] = torch.from_numpy(rows[i].prompt.astype("int64"))
            mask[place, length - size :] = 1
        made = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=config.max_new_tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        )
        for place, i in enumerate(chosen):
            answers[i] = tokenizer.decode(_until(made[place, length:].tolist(), end))
    return [answers[i] for i in range(len(rows))]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


def _batches(rows: Sequence[Encoded], batch_size: int, pad: int, model: nn.Module) -> Any:
    device = next(model.parameters()).device
    for start in range(0, len(rows), batch_size):
        batch = collate(rows[start : start + batch_size], pad)
        yield {key: value.to(device) for key, value in batch.items()}
