"""Is greedy generation greedy? Each token is held against a run without a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from manticore.evaluation.conformance.probe import NotApplicable, Probe


def generation_regret(probe: Probe, ids: Tensor, mask: Tensor | None, new: int = 8) -> float:
    """How far from greedy the tokens are that `generate` chooses behind some ids (B, T)."""
    if not hasattr(probe.model, "generate"):
        raise NotApplicable("it does not generate")
    mask = torch.ones_like(ids) if mask is None else mask
    with torch.no_grad():
        full = probe.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            num_beams=1,
            pad_token_id=probe.pad_id,
        )
        rows = zip(full, mask, strict=True)
        return max(_regret(probe, tokens, real, new) for tokens, real in rows)


def _regret(probe: Probe, tokens: Tensor, mask: Tensor, new: int) -> float:
    """How much worse than the best each generated token is by a whole run, relative to it."""
    tokens = tokens[int((mask == 0).sum()) :]  # without the padding
    logits = probe.call(tokens[None]).logits[0].float()
    before = logits[-new - 1 : -1].clone()
    before[:, _ends(probe.model)] = -torch.inf  # not allowed before `new` tokens are there
    chosen = before.gather(1, tokens[-new:, None]).squeeze(1)
    return ((before.max(dim=1).values - chosen).max() / logits.abs().max()).item()


def _ends(model: Any) -> list[int]:
    """Ids of the end-of-sequence tokens."""
    ends = model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
