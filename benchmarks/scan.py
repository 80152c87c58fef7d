"""The selective scan: our Mamba against transformers', growth with length, distance to a floor.

Model: d_model 256, 4 layers, batch 8, vocabulary 512; forward + backward of the training loss.
Scan: batch 8, d_inner 512, state 16; forward + backward for every input but the skip and gate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks._blocks import KEEP_BLOCKS, keeping_large_blocks
from benchmarks._timing import NOTE, cpu_seconds

BATCH, D_INNER, STATE, VOCAB = 8, 512, 16, 512
LENGTHS = (128, 256, 512, 1024, 2048)


def run() -> dict[str, Any]:
    """Measure everything in one go, so that ratios share the machine's mood."""
    return {
        "timing": NOTE,
        "model": side_by_side(),
        "model_by_length": model_by_length(),
        "model_by_length_keeping_large_blocks": {
            "environment": KEEP_BLOCKS,
            **keeping_large_blocks("scan", "model_by_length()"),
        },
        "scan_by_length": scan_by_length(),
        "scan_floor": scan_floor(),
        "decode": decode(),
    }


def side_by_side() -> dict[str, Any]:
    """Compare a training step of transformers' Mamba with the same model bound to our scan."""
    rows = []
    for seq_len, repeats in ((32, 3), (64, 2), (128, 1)):
        stock = cpu_seconds(_training_step(seq_len, bound=False), repeats, warm_up=0)
        ours = cpu_seconds(_training_step(seq_len, bound=True), 7)
        rows.append(
            {
                "seq_len": seq_len,
                "transformers_seconds": stock,
                "ours_seconds": ours,
                "transformers_over_ours": stock / ours,
                "transformers_repeats": repeats,
            }
        )
    return {"rows": rows, "goal_at_128": 25, "reached_at_128": rows[-1]["transformers_over_ours"]}


def model_by_length() -> dict[str, Any]:
    """Time a training step of the bound model from 128 to 2,048 tokens."""
    return _by_length(lambda seq_len: cpu_seconds(_training_step(seq_len, bound=True), 4))


def scan_by_length() -> dict[str, Any]:
    """Time the scan alone, forward and backward."""
    return _by_length(lambda seq_len: cpu_seconds(_scan_step(seq_len), 5))


def scan_floor(seq_len: int = 512) -> dict[str, Any]:
    """Say how far the scan is from moving its state-sized tensors at the cache's bandwidth.

    Counted in reads and writes of one (batch, state, d_inner) block for each step:
    forward 9  = decays 3, drives 1, recurrence 4, sum over the state 1;
    backward 28 = replay 8, adjoints 1 + 4, three products 3, through the decay 3 + 3,
    gradient of dt 3, gradient of A 3. The arithmetic, exp2 above all, is not in the floor.
    """
    accesses = 9 + 28
    block = BATCH * STATE * D_INNER
    bandwidth = _bandwidth(elements=16 * block)
    measured = cpu_seconds(_scan_step(seq_len), 5) / seq_len
    floor = accesses * block * 4 / bandwidth
    return {
        "seq_len": seq_len,
        "microseconds_per_step": 1e6 * measured,
        "floor_microseconds_per_step": 1e6 * floor,
        "measured_over_floor": measured / floor,
        "block_accesses_per_step": accesses,
        "bandwidth_gigabytes_per_second": bandwidth / 1e9,
        "state_updates_per_second": block / measured,
    }


def decode() -> dict[str, float]:
    """Time one token of the bound model on a filled cache, for each of batch 1 and 8."""
    model = _model(bound=True).eval()
    seconds = {}
    with torch.no_grad():
        for batch in (1, 8):
            token = torch.zeros(batch, 1, dtype=torch.long)
            cache = model(token.expand(-1, 16), use_cache=True).cache_params
            step = partial(model, token, cache_params=cache)
            seconds[f"batch_{batch}"] = cpu_seconds(step, repeats=50)
    return seconds


def _by_length(measure: Callable[[int], float]) -> dict[str, Any]:
    rows = [{"seq_len": n, "seconds": measure(n)} for n in LENGTHS]
    per_token = [row["seconds"] / row["seq_len"] for row in rows]
    return {"rows": rows, "time_per_token_last_over_first": per_token[-1] / per_token[0]}


def _model(bound: bool) -> torch.nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    from manticore.models.fast_paths import bind_fast_paths

    config = MambaConfig(
        vocab_size=VOCAB, hidden_size=D_INNER // 2, num_hidden_layers=4, state_size=STATE
    )
    model = MambaForCausalLM(config).train()
    if bound:
        bind_fast_paths(model)
    return model


def _training_step(seq_len: int, bound: bool) -> Callable[[], object]:
    model = _model(bound)
    ids = torch.randint(VOCAB, (BATCH, seq_len), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()

    return step


def _scan_step(seq_len: int) -> Callable[[], object]:
    from manticore.mixers.selective_scan import selective_scan

    generator = torch.Generator().manual_seed(0)
    time_shape = (BATCH, seq_len)
    x, dt = (torch.randn(*time_shape, D_INNER, generator=generator) for _ in range(2))
    B, C = (torch.randn(*time_shape, STATE, generator=generator) for _ in range(2))
    A = -torch.arange(1.0, STATE + 1).expand(D_INNER, STATE).contiguous()
    inputs = [t.requires_grad_() for t in (x, F.softplus(dt - 2), A, B, C)]
    weights = torch.ones_like(x)

    def step() -> None:
        y, _ = selective_scan(*inputs)
        torch.autograd.grad(y, inputs, weights)

    return step


def _bandwidth(elements: int) -> float:
    """Return bytes per second of a += a * b over two blocks of this size, read and written."""
    a, b = torch.ones(elements), torch.ones(elements)
    return 3 * 4 * elements / cpu_seconds(lambda: torch.mul(a, b, out=a), 50)
