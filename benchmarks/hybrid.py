"""The hybrid against the sum of its components: training step, cached decode, idle branches.

Small pair: GPT-NeoX 128 wide and Mamba 96 wide, 4 layers each, vocabulary 2,048; batch 16, 128
tokens. At this size the decode of one token is nearly all Python and kernel launches, so that
the hybrid's own bookkeeping shows as much as it ever will; the larger pair (512 and 384 wide,
6 layers) shows what is left of it when the matrices have weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks._pair import (
    GOAL,
    LARGER,
    NAMES,
    NOTE,
    SMALL,
    Pair,
    Rounds,
    build_components,
    build_hybrid,
    random_ids,
    training_step,
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured and how often."""

    pair: Pair = SMALL
    larger: Pair = LARGER
    hybrids: tuple[tuple[str, int], ...] = (("streams", 2), ("streams", 4), ("shared", 2))
    contexts: tuple[int, ...] = (64, 128, 256, 512)
    growth: tuple[int, ...] = (64, 512, 1024, 2048)
    new_tokens: int = 16
    larger_context: int = 128
    training_rounds: int = 15
    decode_rounds: int = 21


SIZES = Sizes()


def run() -> dict[str, Any]:
    """Measure everything in one process, so that ratios share the machine's mood."""
    sizes = SIZES
    return {
        "timing": NOTE,
        "goal": GOAL,
        "training_step": [training(sizes, *kind) for kind in sizes.hybrids],
        "cached_decode": [
            decode(sizes, sizes.pair, mixing, num_blocks, context)
            for mixing, num_blocks in sizes.hybrids
            for context in sizes.contexts
        ],
        "cached_decode_larger": [
            decode(sizes, sizes.larger, mixing, num_blocks, sizes.larger_context)
            for mixing, num_blocks in sizes.hybrids
        ],
        "decode_growth": decode_growth(sizes),
        "idle_branch": [idle_branch(sizes, k) for k in range(len(NAMES))],
    }


def training(sizes: Sizes, mixing: str, num_blocks: int) -> dict[str, Any]:
    """Forward and backward of the loss: hybrid, and each component with its own loss."""
    ids = random_ids(sizes.pair)
    models = dict(zip(NAMES, build_components(sizes.pair), strict=True))
    models["hybrid"] = build_hybrid(sizes.pair, num_blocks, mixing)
    works = {name: training_step(model, ids) for name, model in models.items()}
    rounds = Rounds(works, sizes.training_rounds)
    flops = {name: count_flops(work) for name, work in works.items()}
    return {
        "mixing": mixing,
        "num_blocks": num_blocks,
        **rounds.row("hybrid", *NAMES),
        # Matrix products only: what a hybrid without any bookkeeping would cost.
        "matmul_flops_ratio": flops["hybrid"] / sum(flops[name] for name in NAMES),
    }


def count_flops(work: Callable[[], object]) -> int:
    """FLOPs of the matrix products and convolutions in one call, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def decode(sizes: Sizes, pair: Pair, mixing: str, num_blocks: int, context: int) -> dict[str, Any]:
    """Seconds for each new token behind `context` tokens, batch 1.

    `in_turn` is both components in one loop, a token of one and a token of the other, as an
    ensemble decodes: like the hybrid it cannot keep one component's weights in the processor's
    caches from token to token. `mamba_as_loaded` is the Mamba as transformers runs it, without
    the scan that a hybrid binds to it.
    """
    components, hybrid = build_components(pair), build_hybrid(pair, num_blocks, mixing)
    works = {name: ([model], context) for name, model in zip(NAMES, components, strict=True)}
    works |= {"in_turn": (components, context), "hybrid": ([hybrid], context)}
    works["mamba_as_loaded"] = ([without_fast_paths(components[1])], context)
    rounds = _decode_rounds(sizes, works)
    return {
        "mixing": mixing,
        "num_blocks": num_blocks,
        "context": context,
        **rounds.row("hybrid", *NAMES, tokens=sizes.new_tokens),
        "mamba_as_loaded_seconds": rounds.best("mamba_as_loaded") / sizes.new_tokens,
        "ratio_to_as_loaded": rounds.ratio("hybrid", NAMES[0], "mamba_as_loaded"),
        "in_turn_seconds": rounds.best("in_turn") / sizes.new_tokens,
        "in_turn_ratio": rounds.ratio("in_turn", *NAMES),
        "ratio_to_in_turn": rounds.ratio("hybrid", "in_turn"),
    }


def without_fast_paths(model: nn.Module) -> nn.Module:
    """A copy that runs transformers' own code."""
    from manticore.models.fast_paths import unbind_fast_paths

    plain = copy.deepcopy(model)
    unbind_fast_paths(plain)
    return plain


def decode_growth(sizes: Sizes) -> dict[str, Any]:
    """How the time of one token grows with the context, from the first length to each other.

    A path through Mamba alone must stay flat; the full hybrid must not grow by more seconds
    than its attention component does by itself.
    """
    neox, _ = build_components(sizes.pair)
    only_mamba = build_hybrid(sizes.pair, 2, "streams")
    only_mamba.set_mixture(torch.tensor([[0.0, 1.0]] * 2))
    both = build_hybrid(sizes.pair, 2, "streams")
    models = {"mamba_path": only_mamba, "gpt_neox": neox, "hybrid": both}
    works = {
        f"{name} {context}": ([model], context)
        for name, model in models.items()
        for context in sizes.growth
    }
    rounds = _decode_rounds(sizes, works)
    first = sizes.growth[0]
    rows = []
    for context in sizes.growth:
        seconds = {name: rounds.best(f"{name} {context}") / sizes.new_tokens for name in models}
        growth = {name: rounds.ratio(f"{name} {context}", f"{name} {first}") for name in models}
        rows.append({"context": context, "seconds": seconds, "over_first": growth})
    added = {
        name: rows[-1]["seconds"][name] - rows[0]["seconds"][name]
        for name in ("hybrid", "gpt_neox")
    }
    return {"rows": rows, "added_seconds_first_to_last": added}


def idle_branch(sizes: Sizes, k: int) -> dict[str, Any]:
    """All weight on component k: against the component, and a hybrid that has no other branch."""
    component = build_components(sizes.pair)[k]
    hybrid = build_hybrid(sizes.pair, 2, "streams")
    hybrid.set_mixture(torch.eye(len(NAMES))[[k, k]])
    models = {"hybrid": hybrid, NAMES[k]: component, "without_branch": hybrid.prune()}
    ids, context = random_ids(sizes.pair), sizes.contexts[0]
    with torch.no_grad():
        works = {n: partial(m, input_ids=ids, use_cache=False) for n, m in models.items()}
        forward = Rounds(works, sizes.training_rounds)
    decoding = _decode_rounds(sizes, {name: ([model], context) for name, model in models.items()})
    return {
        "component": NAMES[k],
        "forward": {
            **forward.row("hybrid", NAMES[k]),
            "ratio_to_without_branch": forward.ratio("hybrid", "without_branch"),
        },
        "decode": {
            "context": context,
            **decoding.row("hybrid", NAMES[k], tokens=sizes.new_tokens),
            "ratio_to_without_branch": decoding.ratio("hybrid", "without_branch"),
        },
    }


@torch.no_grad()
def _decode_rounds(sizes: Sizes, works: dict[str, tuple[list[nn.Module], int]]) -> Rounds:
    """Time `new_tokens` steps of all models of each work; a round starts at copies of caches."""
    filled = {
        name: [_fill(sizes, model, context) for model in models]
        for name, (models, context) in works.items()
    }
    caches: dict[str, list[Any]] = {}

    def decode(name: str) -> None:
        pairs = list(zip(works[name][0], caches[name], strict=True))
        token = torch.zeros(1, 1, dtype=torch.long)
        for _ in range(sizes.new_tokens):
            for model, cache in pairs:
                past = {_cache_argument(model): cache}
                logits = model(input_ids=token, use_cache=True, **past).logits
            token = logits[:, -1:].argmax(dim=-1)

    return Rounds(
        {name: partial(decode, name) for name in works},
        sizes.decode_rounds,
        before=lambda name: caches.update({name: copy.deepcopy(filled[name])}),
    )


def _fill(sizes: Sizes, model: nn.Module, context: int) -> Any:
    output = model(input_ids=random_ids(sizes.pair, 1, context), use_cache=True, logits_to_keep=1)
    return getattr(output, _cache_argument(model))


def _cache_argument(model: nn.Module) -> str:
    return "cache_params" if model.config.model_type == "mamba" else "past_key_values"
