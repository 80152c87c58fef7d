"""Recurrent families against attention: a training step from 128 to 2,048 tokens on the CPU.

Models: d_model 128, 2 layers, batch 2, vocabulary 512, float32; forward + backward of the training
loss. Attention is Llama's. Mamba-2, gated DeltaNet (Qwen3-Next's) and RWKV-4 are timed with our
scans bound and as transformers runs them. Growth is the exponent p in seconds ~ tokens^p between
two lengths; 1 is linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from benchmarks._blocks import KEEP_BLOCKS, keeping_large_blocks
from benchmarks._pair import NOTE, Rounds

BATCH, VOCAB, WIDTH, DEPTH = 2, 512, 128, 2
LENGTHS = (128, 256, 512, 1024, 2048)
STOCK_RWKV_LENGTHS = LENGTHS[:-1]
"""Its loop is the slowest by far; three lengths would do to see how it grows."""
ROUNDS = 7
FLOOR_LENGTH = 512

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
MODELS = {
    "llama": ("llama", False),
    **{name: (name, True) for name in ("mamba2", "qwen3_next", "rwkv")},
    **{f"{name}_transformers": (name, False) for name in ("mamba2", "qwen3_next", "rwkv")},
}
"""Names in the record -> family, and whether our scan is bound."""


def run() -> dict[str, Any]:
    """Measure all in one go, in a process as it is and in one that keeps its large blocks."""
    return {
        "timing": NOTE,
        "batch": BATCH,
        "parameters": {name: _parameters(name) for name in _CONFIGS},
        **by_length(),
        "keeping_large_blocks": {
            "environment": KEEP_BLOCKS,
            **keeping_large_blocks("families", "by_length()"),
        },
        "mamba2_floor": mamba2_floor(),
    }


def by_length() -> dict[str, Any]:
    """Every model at every length; at one length they take turns."""
    rows = [_row(seq_len) for seq_len in LENGTHS]
    return {"rows": rows, "growth": {name: _growth(name, rows) for name in MODELS}}


def _row(seq_len: int) -> dict[str, Any]:
    names = [n for n in MODELS if n != "rwkv_transformers" or seq_len in STOCK_RWKV_LENGTHS]
    timed = Rounds({name: _training_step(*MODELS[name], seq_len) for name in names}, ROUNDS)
    return {
        "seq_len": seq_len,
        "seconds": {name: timed.best(name) for name in names},
        "over_attention": {name: timed.ratio(name, "llama") for name in names},
        "transformers_over_ours": {
            name: timed.ratio(f"{name}_transformers", name)
            for name in names
            if f"{name}_transformers" in names
        },
    }


def mamba2_floor() -> dict[str, float]:
    """How far a training step of Mamba-2 is from its linear maps, and its scan from its sums.

    The maps alone (input and output of each layer, the head) are run on inputs of the same size.
    The scan cannot do with fewer than 5 operations for each number of the state and token, twice
    more in the backward pass; they are counted at the speed of the maps.
    """
    step = Rounds(
        {"step": _training_step("mamba2", True, FLOOR_LENGTH), "maps": _maps(FLOOR_LENGTH)}, ROUNDS
    )
    sizes = _CONFIGS["mamba2"]
    tokens, inner = BATCH * FLOOR_LENGTH, sizes["num_heads"] * sizes["head_dim"]
    maps = 3 * 2 * tokens * sum(m.weight.numel() for m in _linear_maps())
    scan = 3 * 5 * tokens * DEPTH * inner * sizes["state_size"]
    floor = step.best("maps") * (1 + scan / maps)
    return {
        "seq_len": FLOOR_LENGTH,
        "seconds": step.best("step"),
        "maps_seconds": step.best("maps"),
        "maps_operations": maps,
        "scan_operations": scan,
        "floor_seconds": floor,
        "measured_over_floor": step.best("step") / floor,
    }


def _linear_maps() -> list[torch.nn.Linear]:
    return [m for m in _model("mamba2").modules() if isinstance(m, torch.nn.Linear)]


def _maps(seq_len: int) -> Callable[[], object]:
    maps = _linear_maps()
    inputs = [torch.randn(BATCH, seq_len, m.in_features, requires_grad=True) for m in maps]
    gradients = [torch.randn(BATCH, seq_len, m.out_features) for m in maps]

    def step() -> None:
        for linear, x, gradient in zip(maps, inputs, gradients, strict=True):
            linear.zero_grad()
            x.grad = None
            linear(x).backward(gradient)

    return step


def _growth(name: str, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Exponents between neighbouring lengths, and over all of them."""
    timed = [(row["seq_len"], row["seconds"][name]) for row in rows if name in row["seconds"]]
    pairs = [*pairwise(timed), (timed[0], timed[-1])]
    return {
        f"{short}-{long}": math.log(later / earlier) / math.log(long / short)
        for (short, earlier), (long, later) in pairs
    }


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
