"""What a language model writes on from a prompt."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from manticore.config.recipes import SampleConfig
from manticore.text.tokenizers import continuation


def sample(
    model: PreTrainedModel, tokenizer: Any, prompt: str, settings: SampleConfig, seed: int
) -> dict[str, str]:
    """One continuation; the global random stream is put back afterwards."""
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    options: dict[str, Any] = {"do_sample": False}
    described = "greedy"
    if settings.temperature > 0:
        options = {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
        }
        described = f"temperature {settings.temperature:g}, top-p {settings.top_p:g}"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=torch.ones_like(ids, device=model.device),
            max_new_tokens=settings.max_new_tokens,
            pad_token_id=pad,
            **options,
        )
    text = continuation(tokenizer, output[0].tolist(), ids.shape[1])
    return {"prompt": prompt, "text": text, "settings": described}
