"""The closed-form start of the translators: tokens per second, and its price over plain running.

Pair as in `hybrid`, two and four blocks, both ways of mixing. The floor of the fit is running the
components once: whatever lies above it is Gram matrices and linear systems.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks._pair import NOTE, SMALL, Pair, Rounds, build_hybrid, random_ids


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is fitted and how often."""

    pair: Pair = SMALL
    hybrids: tuple[tuple[str, int], ...] = (("streams", 2), ("streams", 4), ("shared", 2))
    batches: int = 8
    rounds: int = 7


SIZES = Sizes()


def run() -> dict[str, Any]:
    """Measure the fit for each kind of hybrid."""
    rows = [fit(SIZES, mixing, num_blocks) for mixing, num_blocks in SIZES.hybrids]
    return {"timing": NOTE, "rows": rows}


def fit(sizes: Sizes, mixing: str, num_blocks: int) -> dict[str, Any]:
    """Time the fit and a bare run of the components' layers on the same batches."""
    from manticore.hybrids.closed_form import accumulate_grams, fit_projectors

    hybrid = build_hybrid(sizes.pair, num_blocks, mixing)
    ids = random_ids(sizes.pair)
    tokens = sizes.batches * ids.numel()

    def batches() -> Iterator[dict[str, Tensor]]:
        return iter([{"input_ids": ids}] * sizes.batches)

    @torch.no_grad()
    def run_components() -> None:
        for batch in batches():
            for component in hybrid.model.components:
                component(**batch, use_cache=False)

    @torch.no_grad()
    def grams() -> None:
        accumulate_grams(hybrid.model, batches())

    works = {
        "fit": lambda: fit_projectors(hybrid, batches()),
        "grams": grams,
        "components": run_components,
    }
    rounds = Rounds(works, sizes.rounds)
    start = time.perf_counter()
    fit_projectors(hybrid, batches())
    return {
        "mixing": mixing,
        "num_blocks": num_blocks,
        "tokens": tokens,
        **rounds.row("fit", "components"),
        "tokens_per_cpu_second": tokens / rounds.best("fit"),
        "tokens_per_wall_second_once": tokens / (time.perf_counter() - start),
        "grams_over_components": rounds.ratio("grams", "components"),
        # The systems are solved once, whatever the number of tokens.
        "solve_seconds": max(0.0, rounds.best("fit") - rounds.best("grams")),
    }
