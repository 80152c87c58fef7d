"""The pair that the hybrid's benchmarks build, and a fair way to time several things at once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from manticore.hybrids.modeling_manticore import ManticoreForCausalLM

NOTE = (
    "process CPU seconds; the works take turns within one process, so that other work on the "
    "machine slows all of them alike. seconds: minimum over rounds. ratio: median over rounds "
    "of the ratio within one round"
)
GOAL = 1.10
NAMES = ("gpt_neox", "mamba")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Sizes of the two components and of one batch."""

    vocab_size: int = 2048
    neox_width: int = 128
    mamba_width: int = 96
    n_layers: int = 4
    batch: int = 16
    seq_len: int = 128


SMALL = Pair()
LARGER = Pair(neox_width=512, mamba_width=384, n_layers=6)


def build_components(pair: Pair) -> list[PreTrainedModel]:
    """A random GPT-NeoX and a random Mamba with our scan, as the hybrid itself uses it."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, MambaConfig, MambaForCausalLM

    from manticore.models.fast_paths import bind_fast_paths

    shared = {"vocab_size": pair.vocab_size, "num_hidden_layers": pair.n_layers}
    neox = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            hidden_size=pair.neox_width,
            intermediate_size=4 * pair.neox_width,
            num_attention_heads=max(4, pair.neox_width // 64),
            max_position_embeddings=4096,
            **shared,
        )
    )
    mamba = MambaForCausalLM(MambaConfig(hidden_size=pair.mamba_width, **shared))
    bind_fast_paths(mamba)
    return [neox.eval(), mamba.eval()]


def build_hybrid(pair: Pair, num_blocks: int, mixing: str) -> ManticoreForCausalLM:
    """A hybrid of such a pair: uniform mixture, random projectors, loyalty 2, router."""
    from manticore.hybrids.modeling_manticore import ManticoreForCausalLM

    return ManticoreForCausalLM.from_components(
        build_components(pair), num_blocks=num_blocks, mixing=mixing
    )


def random_ids(pair: Pair, batch: int | None = None, seq_len: int | None = None) -> Tensor:
    """Token ids (batch, seq)."""
    shape = (pair.batch if batch is None else batch, pair.seq_len if seq_len is None else seq_len)
    return torch.randint(pair.vocab_size, shape, generator=torch.Generator().manual_seed(0))


def training_step(model: PreTrainedModel, ids: Tensor) -> Callable[[], object]:
    """Forward and backward of the training loss; no optimizer."""
    model.train()

    def step() -> None:
        model.zero_grad()
        # Without a cache, which a component would otherwise fill and keep for nothing.
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    return step


class Rounds:
    """CPU seconds of several works that took turns: name -> one number for each round."""

    def __init__(
        self,
        works: dict[str, Callable[[], object]],
        rounds: int,
        before: Callable[[str], object] | None = None,
    ) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in works}
        names = list(works)
        for index in range(-1, rounds):  # round -1 warms up
            for name in names[index % len(names) :] + names[: index % len(names)]:
                if before is not None:
                    before(name)
                start = time.process_time()
                works[name]()
                if index >= 0:
                    self.seconds[name].append(time.process_time() - start)

    def best(self, name: str) -> float:
        """Least seconds of one work."""
        return min(self.seconds[name])

    def ratio(self, name: str, *others: str) -> float:
        """Median over rounds of this work's seconds over the sum of the others'."""
        rows = zip(self.seconds[name], *(self.seconds[other] for other in others), strict=True)
        return statistics.median(own / sum(rest) for own, *rest in rows)

    def row(self, name: str, *others: str, tokens: int = 1) -> dict[str, Any]:
        """Seconds (for each token) of a work and of the others, and the ratio to their sum."""
        parts = {f"{other}_seconds": self.best(other) / tokens for other in others}
        return {
            f"{name}_seconds": self.best(name) / tokens,
            **parts,
            "ratio": self.ratio(name, *others),
            "ratio_of_minima": self.best(name) / tokens / sum(parts.values()),
        }
