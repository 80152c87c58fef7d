"""Every named mixer: a training step by length, one token by `step`, chunked scans against loops.

Settings of the table; forward and backward for the input and all weights, over as many tokens at
every length, so that equal seconds mean a cost linear in the length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks._timing import NOTE, cpu_seconds
from manticore.mixers.table import TABLE, mixer_spec
from manticore.seeds import torch_generator


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured and how often."""

    names: tuple[str, ...] = tuple(TABLE)
    d_model: int = 128
    tokens: int = 2048
    lengths: tuple[int, ...] = (32, 128, 512, 2048)
    scan_shape: tuple[int, int, int, int] = (16, 8, 128, 16)
    """Batch, heads, steps, and channels of keys and of values."""
    repeats: int = 3


SIZES = Sizes()


def run() -> dict[str, Any]:
    """Measure all mixers one after another."""
    return {
        "timing": NOTE,
        "sizes": asdict(SIZES),
        "mixers": [measure(name) for name in SIZES.names],
        "scans": scans(),
    }


def measure(name: str) -> dict[str, Any]:
    """Time one mixer, with the costs that its formulas state."""
    spec = mixer_spec(name, d_model=SIZES.d_model)
    seconds = {
        seq_len: cpu_seconds(_training_step(name, seq_len), SIZES.repeats)
        for seq_len in SIZES.lengths
    }
    return {
        "name": name,
        "parameters": spec.num_parameters(),
        "mixing_state_at_128": spec.mixing_state_size(128),
        "forward_flops_per_token_at_128": spec.flops_per_token(128),
        "training_microseconds_per_token": {
            str(n): round(1e6 * value / SIZES.tokens, 2) for n, value in seconds.items()
        },
        "step_microseconds": round(1e6 * cpu_seconds(_decode(name), 20 * SIZES.repeats), 1),
    }


def scans() -> list[dict[str, Any]]:
    """Compare each chunked scan with its naive twin."""
    from manticore.mixers.decayed_scan import decayed_scan, decayed_scan_naive
    from manticore.mixers.delta_scan import delta_scan, delta_scan_naive

    generator = torch_generator(0)
    shape = SIZES.scan_shape
    q, k, v = (torch.randn(shape, generator=generator).requires_grad_() for _ in range(3))
    unit = torch.nn.functional.normalize(k.detach(), dim=-1).requires_grad_()
    decay = -torch.rand(shape, generator=generator)
    beta = torch.rand(shape[:3], generator=generator)
    works: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]] = {
        "no decay": (decayed_scan, decayed_scan_naive, (q, k, v, None)),
        "decay per head": (decayed_scan, decayed_scan_naive, (q, k, v, decay[..., :1])),
        "decay per channel": (decayed_scan, decayed_scan_naive, (q, k, v, decay)),
        "delta rule": (delta_scan, delta_scan_naive, (q, unit, v, beta)),
    }
    rows = []
    for name, (chunked, naive, inputs) in works.items():
        chunked_seconds, naive_seconds = (
            cpu_seconds(
                lambda scan=scan, inputs=inputs: scan(*inputs)[0].sum().backward(), SIZES.repeats
            )
            for scan in (chunked, naive)
        )
        rows.append(
            {
                "scan": name,
                "chunked_seconds": chunked_seconds,
                "naive_seconds": naive_seconds,
                "naive_over_chunked": naive_seconds / chunked_seconds,
            }
        )
    return rows


def _training_step(name: str, seq_len: int) -> Callable[[], object]:
    mixer = mixer_spec(name, d_model=SIZES.d_model).build(torch_generator(0))
    x = torch.randn(SIZES.tokens // seq_len, seq_len, SIZES.d_model, generator=torch_generator(0))
    x.requires_grad_()

    def step() -> None:
        mixer(x).sum().backward()

    return step


def _decode(name: str) -> Callable[[], object]:
    mixer = mixer_spec(name, d_model=SIZES.d_model).build(torch_generator(0))
    x = torch.randn(1, 128, SIZES.d_model, generator=torch_generator(0))
    with torch.no_grad():
        _, state = mixer.prefill(x)

    def step() -> None:
        with torch.no_grad():
            mixer.step(x[:, 0], state)

    return step
