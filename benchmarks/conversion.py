"""A transformer and its conversions: training by length, prefill, decoding in long contexts.

The same blocks with another mixer in every layer. Works of one length take turns within one
process, so that a ratio compares neighbours; a ratio is the median over rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks._conversion_chart import draw
from benchmarks._pair import Rounds, training_step
from manticore import transfer
from manticore.conversion.modeling_converted import ConvertedForCausalLM

__all__ = ["draw", "run"]

ATTENTION = "attention"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured and how often."""

    mixers: tuple[str, ...] = (
        "sliding-attention", "linear-attention", "retention", "gated-linear-attention",
        "mamba2-heads", "deltanet", "gated-deltanet", "mamba", "mamba2", "rwkv5", "rwkv6", "rwkv7",
    )  # fmt: skip
    hidden_size: int = 128
    n_layers: int = 4
    n_heads: int = 4
    vocab_size: int = 512
    tokens: int = 4096
    """In every training step, whatever the length."""
    lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    short_context: int = 128
    long_context: int = 32768
    piece: int = 2048
    """Tokens of a prefill that are read at a time."""
    rounds: int = 3
    decoded: int = 20
    """Tokens in a round of decoding."""


SIZES = Sizes()


def run() -> dict[str, Any]:
    """Measure training, then prefill, decoding and the bytes of the cache."""
    teacher = new_teacher()
    models = {ATTENTION: teacher_model(teacher, ())}
    models |= {name: teacher_model(teacher, (), name) for name in SIZES.mixers}
    half = teacher_model(teacher, (SIZES.n_layers // 2,), "gated-deltanet")
    models["gated-deltanet, one layer attention"] = half
    return {
        "timing": "process CPU seconds; ratios are medians over rounds of works in turn",
        "sizes": asdict(SIZES),
        "training": training(models),
        "long_context": [long_context(name, model) for name, model in models.items()],
    }


def new_teacher() -> LlamaForCausalLM:
    """A small random Llama."""
    config = LlamaConfig(
        hidden_size=SIZES.hidden_size,
        intermediate_size=3 * SIZES.hidden_size,
        num_hidden_layers=SIZES.n_layers,
        num_attention_heads=SIZES.n_heads,
        vocab_size=SIZES.vocab_size,
        max_position_embeddings=2 * SIZES.long_context,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def teacher_model(
    teacher: LlamaForCausalLM, keep: tuple[int, ...], mixer: str = ATTENTION
) -> ConvertedForCausalLM:
    """The teacher with another mixer in the layers that are not kept."""
    return transfer(teacher, mixer, copy="paper" if mixer != ATTENTION else "all", keep=keep)[0]


def training(models: Mapping[str, ConvertedForCausalLM]) -> dict[str, Any]:
    """A training step of every model by length, over attention's of the same round."""
    rows: dict[str, Any] = {name: {"ratio": {}, "microseconds_per_token": {}} for name in models}
    for seq_len in SIZES.lengths:
        ids = torch.arange(SIZES.tokens).view(-1, seq_len) % SIZES.vocab_size
        rounds = Rounds({n: training_step(m, ids) for n, m in models.items()}, SIZES.rounds)
        for name, row in rows.items():
            row["ratio"][str(seq_len)] = rounds.ratio(name, ATTENTION)
            per_token = 1e6 * rounds.best(name) / SIZES.tokens
            row["microseconds_per_token"][str(seq_len)] = round(per_token, 2)
    for row in rows.values():
        row["cheaper_from"] = crossover(row["ratio"])
    return rows


def crossover(ratios: Mapping[str, float]) -> int | None:
    """The first measured length from which on a model is cheaper than attention."""
    found = None
    for length, ratio in sorted(ratios.items(), key=lambda item: -int(item[0])):
        if ratio >= 1:
            break
        found = int(length)
    return found


def long_context(name: str, model: ConvertedForCausalLM) -> dict[str, Any]:
    """Time to read contexts, time per token after them, and the bytes that they leave."""
    model.eval()
    contexts = {"short": SIZES.short_context, "quarter": SIZES.long_context // 4}
    contexts["long"] = SIZES.long_context
    caches, read = {}, {}
    for kind, context in contexts.items():
        start = time.process_time()
        caches[kind] = prefill(model, context)
        read[kind] = time.process_time() - start
    rounds = Rounds({kind: decode(model, cache) for kind, cache in caches.items()}, SIZES.rounds)
    return {
        "name": name,
        "prefill_seconds": {kind: round(seconds, 3) for kind, seconds in read.items()},
        "prefill_per_token_over_quarter": read["long"] / read["quarter"] / 4,
        "decode_milliseconds": {
            kind: round(1e3 * rounds.best(kind) / SIZES.decoded, 3) for kind in caches
        },
        "decode_long_over_short": rounds.ratio("long", "short"),
        "cache_bytes": {
            kind: sum(t.nbytes for layer in cache.layers for t in layer.state.values())
            for kind, cache in caches.items()
        },
    }


def prefill(model: ConvertedForCausalLM, context: int) -> Any:
    """Read a context in pieces and return the cache."""
    ids = torch.arange(context)[None] % SIZES.vocab_size
    cache = None
    with torch.no_grad():
        for piece in ids.split(SIZES.piece, dim=1):
            out = model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
    return cache


def decode(model: ConvertedForCausalLM, cache: Any) -> Callable[[], object]:
    """A few more tokens, one at a time."""
    token = torch.zeros(1, 1, dtype=torch.long)

    def work() -> None:
        with torch.no_grad():
            for _ in range(SIZES.decoded):
                model(token, past_key_values=cache, use_cache=True)

    return work
