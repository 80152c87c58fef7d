"""The setting of transformers behind a table of rotary angles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import LlamaConfig

from manticore.conversion.block_spec import BlockSpec
from manticore.conversion.source_blocks import rotary_of

# Llama 3.1's published settings; its factor and base are read off the angles.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_DIGITS = range(1, 10)


def rope_parameters(block: BlockSpec) -> dict[str, Any] | None:
    """The setting of transformers that gives exactly these angles; None: there is none known.

    A converted model keeps the angles themselves, so base and factor are found from them, and a
    candidate counts only when it gives the same float32 numbers.
    """
    wanted = (block.rotary_frequencies, block.rotary_amplitude)
    rotated = 2 * len(block.rotary_frequencies)
    part = {} if rotated == block.head_dim else {"partial_rotary_factor": rotated / block.head_dim}
    for candidate in _candidates(block):
        probe = LlamaConfig(head_dim=block.head_dim, rope_parameters={**candidate, **part})
        if rotary_of(probe, block.head_dim) == wanted:
            return {**candidate, **part}
    return None


def _candidates(block: BlockSpec) -> Iterator[dict[str, Any]]:
    angles, half = block.rotary_frequencies, len(block.rotary_frequencies)
    if half == 0:
        return
    if half == 1:  # one angle of 1 (or 1 / factor), whatever the base
        yield {"rope_type": "default", "rope_theta": 10000.0}
        yield {"rope_type": "linear", "rope_theta": 10000.0, "factor": _short(1 / angles[0], 9)}
        return
    factor = 1 / angles[0]
    last, second = ((index, (angles[index] * factor) ** (-half / index)) for index in (half - 1, 1))
    for digits in _DIGITS:
        yield {"rope_type": "default", "rope_theta": _short(last[1], digits)}
    for digits in _DIGITS:
        linear = {"rope_type": "linear", "factor": _short(factor, 9)}
        yield {**linear, "rope_theta": _short(last[1], digits)}
    for digits in _DIGITS:
        base = _short(second[1], digits)
        stretch = base ** (-(half - 1) / half) / angles[-1]
        yield {
            "rope_type": "llama3", "rope_theta": base, "factor": _short(stretch, 4), **_LLAMA3
        }  # fmt: skip


def _short(number: float, digits: int) -> float:
    return float(f"{number:.{digits}g}")
