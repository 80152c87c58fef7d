"""Adapters: forward + backward of one adapted layer, MoRe beside PEFT's own methods.

A frozen linear layer without bias, 1,024 tokens that want a gradient, as inside a model. The
methods take turns, so that they share the machine's mood; what counts is the median over the turns
of the ratio of two neighbours in time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import peft
import torch
from torch import nn

from manticore.adapters.more import MoReConfig

SHAPES = ((2048, 2048), (1024, 4096))
NOTE = "process CPU seconds of all threads; methods interleaved; medians over paired rounds"
METHODS: dict[str, Callable[[], Any]] = {
    "more_n4_r8": lambda: MoReConfig(nblocks=4, block_rank=8, target_modules=["0"]),
    "lora_r8": lambda: peft.LoraConfig(r=8, target_modules=["0"]),
    "lora_r32": lambda: peft.LoraConfig(r=32, target_modules=["0"]),
    "gralora_r8_k4": lambda: peft.GraloraConfig(r=8, alpha=8, gralora_k=4, target_modules=["0"]),
    "miss_r8": lambda: peft.MissConfig(r=8, target_modules=["0"]),
    "boft_b8": lambda: peft.BOFTConfig(boft_block_size=8, target_modules=["0"]),
}


def run(
    shapes: Sequence[tuple[int, int]] = SHAPES, tokens: int = 1024, rounds: int = 9
) -> dict[str, Any]:
    """Measure every method on every shape."""
    rows = [_compare(shape, tokens, rounds) for shape in shapes]
    return {"timing": NOTE, "tokens": tokens, "rounds": rounds, "rows": rows, "goals": _goals(rows)}


def _compare(shape: tuple[int, int], tokens: int, rounds: int) -> dict[str, Any]:
    steps = {"frozen": _step(_layer(shape), shape, tokens)}
    parameters = {}
    for name, config in METHODS.items():
        model = peft.get_peft_model(_layer(shape), config())
        parameters[name] = model.get_nb_trainable_parameters()[0]
        steps[name] = _step(model, shape, tokens)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for turn in range(rounds):
        names = list(steps) if turn % 2 == 0 else list(steps)[::-1]
        for name in names:
            start = time.process_time()
            steps[name]()
            seconds[name].append(time.process_time() - start)
    return {
        "in_features": shape[0],
        "out_features": shape[1],
        "trainable_parameters": parameters,
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "over_frozen": {name: _ratio(seconds, name, "frozen") for name in METHODS},
        "more_over": {name: _ratio(seconds, "more_n4_r8", name) for name in METHODS},
    }


def _layer(shape: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(nn.Linear(*shape, bias=False)).requires_grad_(False)


def _step(model: nn.Module, shape: tuple[int, int], tokens: int) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, shape[0], generator=generator, requires_grad=True)
    gradient = torch.randn(tokens, shape[1], generator=generator)

    def step() -> None:
        x.grad = None
        model.zero_grad(set_to_none=True)
        model(x).backward(gradient)

    return step


def _ratio(seconds: dict[str, list[float]], name: str, other: str) -> float:
    pairs = zip(seconds[name], seconds[other], strict=True)
    return statistics.median(a / b for a, b in pairs)


def _goals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "more_over_lora_r8_at_most": 1.05,
        "more_over_lora_r8": max(row["more_over"]["lora_r8"] for row in rows),
        "boft_over_more_on_the_first_at_least": 5.0,
        "boft_over_more_on_the_first": 1 / rows[0]["more_over"]["boft_b8"],
    }
