"""Recall probes: does a language model use what its context says? Measured without any training.

Models without attention lose here before their loss shows it (Arora et al., 2023, "Zoology",
arXiv:2312.04927), so these stand beside the loss wherever an attention layer was replaced.

- Induction (Olsson et al., 2022, arXiv:2209.11895): random tokens, then the same tokens again. The
  second copy can be read off the first.
- Multi-query recall: pairs of random tokens are shown, then their keys alone. The answer is the
  likeliest of the values that the row has shown, so chance is one in their number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from manticore.seeds import derive_seed, numpy_generator
from manticore.tasks.mad import make_data
from manticore.tasks.task import IGNORE


@dataclass(frozen=True, kw_only=True)
class RecallProbe:
    """Sizes of both probes."""

    rows: int = 64
    copied: int = 32
    """Tokens of the induction probe that come twice."""
    pairs: int = 4
    """Key-value pairs of the recall probe."""
    seq_len: int = 32
    """Tokens of the recall probe."""
    seed: int = 0


def recall_probes(
    model: nn.Module, tokens: Sequence[int], probe: RecallProbe | None = None
) -> dict[str, float]:
    """Both probes on a causal language model.

    Args:
        model: called as `model(input_ids, use_cache=False).logits`; in eval mode for the duration.
        tokens: ids to draw from, all different. Take those of the text (`recall_tokens`): one that
            no training has shown has a random embedding and tells nothing.

    Returns:
        `induction_accuracy` and `induction_gain` (nats by which the second copy is easier than the
        first), `mqar_accuracy` and `mqar_chance`.
    """
    probe = probe or RecallProbe()
    was_training = model.training
    model.eval()
    try:
        return {**_induction(model, tokens, probe), **_mqar(model, tokens, probe)}
    finally:
        model.train(was_training)


def recall_tokens(
    text: Iterable[np.ndarray], vocab_size: int, special: Collection[int] = ()
) -> list[int]:
    """Ids to draw from: those of packed text without special ones, in order.

    Text of fewer ids than the probes take gives all of the vocabulary instead.
    """
    found = set().union(*(np.unique(ids).tolist() for ids in text)).difference(special)
    if len(found) <= max(RecallProbe.copied, RecallProbe.seq_len):
        found = set(range(vocab_size)).difference(special)
    return sorted(found)


def induction_rows(tokens: Sequence[int], probe: RecallProbe) -> Tensor:
    """Token ids (rows, 2 * copied): random tokens, all different in a row, twice."""
    rng = numpy_generator(probe.seed, "recall probes", "induction")
    drawn = np.stack([rng.permutation(tokens)[: probe.copied] for _ in range(probe.rows)])
    return torch.from_numpy(np.concatenate([drawn, drawn], axis=1))


def mqar_rows(tokens: Sequence[int], probe: RecallProbe) -> tuple[Tensor, Tensor]:
    """Token ids and targets (rows, seq_len), -100 where nothing is asked."""
    inputs, targets = make_data(
        "mqar",
        probe.rows,
        derive_seed(probe.seed, "recall probes", "mqar"),
        split="test",
        vocab_size=2 * (len(tokens) // 2),
        seq_len=probe.seq_len,
        num_kv_pairs=probe.pairs,
    )
    ids = np.asarray(tokens)
    targets = np.where(targets == IGNORE, IGNORE, ids[np.maximum(targets, 0)])
    return torch.from_numpy(ids[inputs]), torch.from_numpy(targets)


@torch.no_grad()
def next_token_outcomes(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Nats of each next token, and whether it was thought the likeliest: both (rows, seq - 1)."""
    logits, following = _logits(model, ids), ids[:, 1:]
    said = logits.log_softmax(dim=-1)[:, :-1].gather(-1, following.unsqueeze(-1))
    return -said.squeeze(-1), logits.argmax(dim=-1)[:, :-1] == following


@torch.no_grad()
def _induction(model: nn.Module, tokens: Sequence[int], probe: RecallProbe) -> dict[str, float]:
    nats, hits = next_token_outcomes(model, induction_rows(tokens, probe))
    # The second copy's first token follows nothing that has been seen.
    first, second = slice(0, probe.copied - 1), slice(probe.copied, None)
    return {
        "induction_accuracy": float(hits[:, second].double().mean()),
        "induction_gain": float(nats[:, first].double().mean() - nats[:, second].double().mean()),
    }


@torch.no_grad()
def _mqar(model: nn.Module, tokens: Sequence[int], probe: RecallProbe) -> dict[str, float]:
    ids, targets = mqar_rows(tokens, probe)
    logits = _logits(model, ids)
    shown = ids[:, 1 : 2 * probe.pairs : 2]  # (rows, pairs) values
    choices = logits.gather(2, shown[:, None].expand(-1, ids.shape[1], -1))
    best = shown.gather(1, choices.argmax(dim=-1))  # (rows, seq_len)
    asked = targets != IGNORE
    hits = best[asked] == targets[asked]
    return {"mqar_accuracy": float(hits.double().mean()), "mqar_chance": 1 / probe.pairs}


def _logits(model: Any, ids: Tensor) -> Tensor:
    """Logits (rows, seq, vocab) in float32 on the CPU."""
    device = next(model.parameters()).device
    found: Tensor = model(input_ids=ids.to(device), use_cache=False).logits.float().cpu()
    return found
