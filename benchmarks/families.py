"""Recurrent families against attention: a training step from 128 to 2,048 tokens on the CPU.

Models: d_model 128, 2 layers, batch 2, vocabulary 512, float32; forward + backward of the training
loss. Attention is Llama's. Growth is the exponent p in seconds ~ tokens^p between two lengths;
1 is linear. RWKV-4 is timed with transformers' loop and with our scan bound to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from benchmarks._timing import NOTE, cpu_seconds

BATCH, VOCAB, WIDTH, DEPTH = 2, 512, 128, 2
LENGTHS = (128, 256, 512, 1024, 2048)
STOCK_RWKV_LENGTHS = LENGTHS[:-1]
"""Its loop is the slowest by far; three lengths would do to see how it grows."""

_SIZES = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "vocab_size": VOCAB}
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"num_attention_heads": 4, "intermediate_size": 4 * WIDTH},
    "mamba2": {"num_heads": 8, "head_dim": 32, "state_size": 32, "n_groups": 1},
    "qwen3_next": {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "intermediate_size": 4 * WIDTH,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "layer_types": ["linear_attention"] * DEPTH,
        "num_experts": 0,
        "mlp_only_layers": list(range(DEPTH)),
    },
    "rwkv": {"rescale_every": 0},
}
"""Names of families as transformers has them; qwen3_next with gated DeltaNet in every layer."""


def run() -> dict[str, Any]:
    """Measure all in one go, length by length, so that ratios share the machine's mood."""
    models = {name: (name, True) for name in _CONFIGS} | {"rwkv_transformers": ("rwkv", False)}
    rows = []
    for seq_len in LENGTHS:
        chosen = {
            name: kind
            for name, kind in models.items()
            if name != "rwkv_transformers" or seq_len in STOCK_RWKV_LENGTHS
        }
        seconds = {name: _seconds(*kind, seq_len) for name, kind in chosen.items()}
        over = {name: taken / seconds["llama"] for name, taken in seconds.items()}
        rows.append({"seq_len": seq_len, "seconds": seconds, "over_attention": over})
    return {
        "timing": NOTE,
        "batch": BATCH,
        "parameters": {name: _parameters(name) for name in _CONFIGS},
        "rows": rows,
        "growth": {name: _growth(name, rows) for name in models},
        "rwkv_transformers_over_ours": {
            str(row["seq_len"]): row["seconds"]["rwkv_transformers"] / row["seconds"]["rwkv"]
            for row in rows
            if "rwkv_transformers" in row["seconds"]
        },
    }


def _growth(name: str, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Exponents between neighbouring lengths, and over all of them."""
    timed = [(row["seq_len"], row["seconds"][name]) for row in rows if name in row["seconds"]]
    pairs = [*pairwise(timed), (timed[0], timed[-1])]
    return {
        f"{short}-{long}": math.log(later / earlier) / math.log(long / short)
        for (short, earlier), (long, later) in pairs
    }


def _seconds(name: str, bound: bool, seq_len: int) -> float:
    slow = not bound or seq_len > 512
    return cpu_seconds(_training_step(name, bound, seq_len), repeats=2 if slow else 4)


def _training_step(name: str, bound: bool, seq_len: int) -> Callable[[], object]:
    from manticore.models.fast_paths import bind_fast_paths

    model = _model(name).train()
    if bound:
        bind_fast_paths(model)
    ids = torch.randint(VOCAB, (BATCH, seq_len), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        model.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    return step


def _model(name: str) -> torch.nn.Module:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    model: torch.nn.Module = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[name](**_SIZES, **_CONFIGS[name])
    )
    return model


def _parameters(name: str) -> int:
    return sum(parameter.numel() for parameter in _model(name).parameters())
