"""Write canonical blocks as tensors of a source family: the inverse of `reading`.

The rows of `sources` say where tensors lie; here their changes are undone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from manticore.conversion.block_spec import BlockSpec
from manticore.conversion.reading import places
from manticore.conversion.sources import SOURCES

Tensors = Mapping[str, Tensor]
_LEAVES = ("weight", "bias")
_QKV = ("q", "k", "v")


def source_tensors(row: str, state: Tensors, block: BlockSpec) -> dict[str, Tensor]:
    """The tensors of an all-attention model under the names of a row of `SOURCES`.

    Args:
        row: key of `SOURCES`.
        state: the state dict of a `ConvertedForCausalLM` that keeps all its attention.
    """
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)  # stock name -> change -> tensor
    for canonical, module, change in places(SOURCES[row], block):
        for leaf in _LEAVES:
            if f"{canonical}.{leaf}" in state:
                parts[f"{module}.{leaf}"][change] = state[f"{canonical}.{leaf}"]
    return {name: _undo(changes, block) for name, changes in parts.items()}


def _undo(changes: dict[str, Tensor], block: BlockSpec) -> Tensor:
    """One tensor of the source from its canonical parts."""
    first = next(iter(changes))
    if first.startswith("neox"):
        # Rows lie as (head, q | k | v, channel).
        heads = [
            changes[f"neox-{part}"].unflatten(0, (block.n_heads, block.head_dim)) for part in _QKV
        ]
        return torch.stack(heads, dim=1).flatten(0, 2)
    if first.startswith("gpt2"):
        fused = torch.cat([changes[f"gpt2-{part}"] for part in _QKV])
        return fused.t()
    if first == "transposed":
        return changes[first].t()
    return halves_to_neighbours(changes[first], block) if first == "halves" else changes[first]


def halves_to_neighbours(rows: Tensor, block: BlockSpec) -> Tensor:
    """Reorder rows of q or k, so that rotated pairs (i, i + R/2) become (2i, 2i + 1)."""
    half = len(block.rotary_frequencies)
    by_head = rows.unflatten(0, (-1, block.head_dim))
    pairs = [index for i in range(half) for index in (i, i + half)]
    return by_head[:, [*pairs, *range(2 * half, block.head_dim)]].flatten(0, 1)
