"""Recipes of a second: a model of 16 channels, the zoo's tokenizer, data written by the test."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

from manticore.config.adapter_recipe import AdaptRecipe
from manticore.config.load import from_plain

ZOO = Path(__file__).resolve().parents[2] / "recipes" / "zoo"
EVERY_SPLIT = {"train": 0.6, "architecture": 0.0, "validation": 0.2, "test": 0.2}
METHODS = [
    {"id": "full", "label": "full fine-tuning", "method": "full"},
    {"id": "lora", "label": "LoRA", "method": "lora", "settings": {"r": 2, "lora_alpha": 2}},
    {
        "id": "more",
        "label": "MoRe",
        "method": "more",
        "settings": {"nblocks": 2, "block_rank": 2},
    },
]


def tokenizer() -> PreTrainedTokenizerFast:
    """The zoo's: 2,048 pieces, end of text 0."""
    return PreTrainedTokenizerFast.from_pretrained(ZOO / "tokenizer")


def save_model(folder: Path, family: str = "gpt_neox") -> Path:
    """Write a tiny model with the zoo's tokenizer beside it."""
    common = {"vocab_size": 2048, "hidden_size": 16, "num_hidden_layers": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any
        if family == "mamba":
            model = MambaForCausalLM(MambaConfig(**common, state_size=4))
        else:
            sizes = {"num_attention_heads": 2, "intermediate_size": 32}
            model = GPTNeoXForCausalLM(GPTNeoXConfig(**common, **sizes))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sums(count: int = 60) -> list[dict[str, str]]:
    """Different small sums with their results."""
    pairs = [(a, b) for a in range(10) for b in range(10)][:count]
    return [{"sum": f"{a} plus {b} is", "result": f" {a + b}"} for a, b in pairs]


def plain_recipe(model: Path, rows: Path, **changes: Any) -> dict[str, Any]:
    """A recipe on sums as plain values; `changes` replace whole sections."""
    return {
        "kind": "adapt",
        "name": "tiny",
        "model": {"path": str(model)},
        "data": {
            "format": "instruction",
            "prompt": "{sum}",
            "answer": "{result}",
            "seq_len": 32,
            "sources": [{"path": str(rows), "licence": "MIT"}],
            "splits": EVERY_SPLIT,
        },
        "train": {"steps": 4, "batch_size": 4, "warmup_steps": 1, "checkpoint_every": 1},
        "rates": {"rates": [0.001, 0.003], "extensions": 0},
        "evaluate": {"metrics": ["loss", "exact-match"], "max_new_tokens": 3},
        "methods": METHODS,
        "goals": [{"row": "more", "against": "lora"}],
        **changes,
    }


def recipe_of(plain: Mapping[str, Any]) -> AdaptRecipe:
    """The recipe itself."""
    return from_plain(AdaptRecipe, dict(plain), source="the test")
