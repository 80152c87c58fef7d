"""The six-point sweep (three rates, two decays) of MAD: one trial after another, and stacked.

Each work trains the six trials for some steps from the start, with one measurement of a small
validation and test split at the end, and builds the model itself. Data are random tokens: a step
costs the same as on a task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy
import torch

from benchmarks._blocks import keeping_large_blocks
from benchmarks._pair import NOTE, Rounds

if TYPE_CHECKING:
    from manticore.evaluation.mad.training_types import SplitArrays

VOCAB = 16
GPU_GOAL = 3.0
"""Gain of stacking on a GPU that the project aims at; a CPU has no idle units to fill."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One shape of the trials."""

    d_model: int
    seq_len: int
    batch: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is trained and how often."""

    shapes: tuple[Shape, ...] = (
        Shape(d_model=16, seq_len=16, batch=8, steps=20),
        Shape(d_model=32, seq_len=32, batch=16, steps=10),
        Shape(d_model=64, seq_len=64, batch=32, steps=3),
        Shape(d_model=128, seq_len=64, batch=128, steps=1),  # a step of the pocket protocol
    )
    architectures: tuple[str, ...] = ("attention", "gated linear attention", "gated deltanet")
    rounds: int = 3
    in_subprocess: bool = True
    """Measure the last shape again where malloc keeps large blocks."""


SIZES = Sizes()
LAYERS = {
    "attention": ("mh-attention:n_heads=8", "rwkv6-channel") * 2,
    "gated linear attention": ("mh-gated-linear-attention:n_heads=8", "rwkv6-channel") * 2,
    "gated deltanet": ("gated-deltanet:n_heads=8", "rwkv6-channel") * 2,
}


def run() -> dict[str, Any]:
    """Measure both engines in turns, so that ratios share the machine's mood."""
    on_gpu = torch.cuda.is_available()
    found = {
        "timing": NOTE,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "trials": 6,
        "goal_on_a_gpu": GPU_GOAL,
        "rows": rows(SIZES.shapes),
    }
    if SIZES.in_subprocess and not on_gpu:
        found["rows_keeping_large_blocks"] = keeping_large_blocks(
            "stacked", "rows(SIZES.shapes[-1:])"
        )
    return found


def rows(shapes: Sequence[Shape]) -> list[dict[str, Any]]:
    """Every architecture at every shape."""
    return [measure(name, shape) for name in SIZES.architectures for shape in shapes]


def measure(name: str, shape: Shape) -> dict[str, Any]:
    """Both engines on one architecture at one size."""
    works = {engine: sweep(name, shape, engine) for engine in ("one-by-one", "stacked")}
    timed = Rounds(works, SIZES.rounds)
    return {
        "architecture": name,
        **asdict(shape),
        "one_by_one_seconds": timed.best("one-by-one"),
        "stacked_seconds": timed.best("stacked"),
        "one_by_one_over_stacked": timed.ratio("one-by-one", "stacked"),
    }


def sweep(name: str, shape: Shape, engine: str) -> Callable[[], object]:
    """The six trials, as something to call."""
    from manticore.evaluation.mad.training import train_points
    from manticore.evaluation.mad.training_types import Point, TrainSettings
    from manticore.models.architectures import architecture
    from manticore.models.configuration_mixer_lm import MixerLMConfig
    from manticore.models.modeling_mixer_lm import MixerForCausalLM

    layers = architecture(LAYERS[name])
    config = MixerLMConfig(layers=layers, d_model=shape.d_model, vocab_size=VOCAB)
    settings = TrainSettings(steps=shape.steps, batch_size=shape.batch, stop_accuracy=2)
    points = [Point(rate, decay, 0) for rate in (1e-4, 5e-4, 1e-3) for decay in (0.0, 0.1)]
    splits, device = random_splits(shape), "cuda" if torch.cuda.is_available() else "cpu"

    def work() -> None:
        train_points(
            lambda generator: MixerForCausalLM.from_generator(config, generator),
            points,
            splits,
            settings,
            engine=engine,
            device=device,
        )
        if device == "cuda":
            torch.cuda.synchronize()

    return work


def random_splits(shape: Shape) -> SplitArrays:
    """Random tokens; all positions are scored."""
    from manticore.evaluation.mad.training_types import SplitArrays

    generator = numpy.random.default_rng(0)
    train, valid, test = (
        (generator.integers(0, VOCAB, size), generator.integers(0, VOCAB, size))
        for size in ((4 * shape.batch, shape.seq_len), *[(2, shape.seq_len)] * 2)
    )
    return SplitArrays(train=train, valid=valid, test=test)
