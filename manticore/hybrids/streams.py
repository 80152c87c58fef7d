"""`mixing="streams"`: every component keeps its own residual stream and reads the others.

Legend: K components of width d_k, B blocks, boundary b = 0..B (boundary B lies before the heads).
The formulas are those of `ManticoreModel`'s docstring.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from manticore.hybrids.modeling_backbone import Inputs, ManticoreModel

Streams = dict[int, Tensor]


class Loyalty(nn.Module):
    """s_b >= 0, one for each boundary: a constant, or learned."""

    def __init__(self, values: list[float], learn: bool) -> None:
        super().__init__()
        start = torch.tensor(values)
        if learn:
            self.value = nn.Parameter(start)
        else:
            self.register_buffer("value", start, persistent=True)
        self.fixed = None if learn else values

    def at(self, boundary: int) -> Tensor | float:
        """Loyalty at one boundary, never negative."""
        if self.fixed is not None:
            return self.fixed[boundary]
        return self.value[boundary].float().clamp(min=0)


def run_streams(model: "ManticoreModel", inputs: "Inputs", boundaries: list[Tensor] | None):
    """Run all blocks; returns the final streams y_B of the active components."""
    streams = model.enter_streams(inputs)
    for block in range(model.config.num_blocks):
        _record(model, streams, boundaries)
        streams = {
            k: model.run_block(k, block, read(model, block, k, streams), inputs)
            for k in model.rows.active(block)
        }
    _record(model, streams, boundaries)
    return streams


def read(model: "ManticoreModel", boundary: int, target: int, streams: Streams) -> Tensor:
    """x_bk: what component `target` sees of all streams at a boundary, (batch, seq, d_target)."""
    loyalty = model.loyalty.at(boundary)
    if loyalty == float("inf") and target in streams:
        return streams[target]
    rows = model.rows
    row = rows.log_embed_row() if boundary == 0 else rows.log_row(boundary - 1)
    if target in streams and not isinstance(loyalty, float):
        bonus = torch.zeros_like(row)
        bonus[target] = 1.0
        row = row + bonus * loyalty
    elif target in streams and loyalty:
        row = row + row.new_tensor([loyalty * (k == target) for k in range(len(row))])
    return model.translators.gather(boundary, target, streams, row)


def concatenate(model: "ManticoreModel", streams: Streams) -> Tensor:
    """All streams side by side, (batch, seq, sum of widths); a skipped one is zero."""
    some = next(iter(streams.values()))
    parts = [
        streams[k] if k in streams else some.new_zeros(*some.shape[:-1], width)
        for k, width in enumerate(model.config.widths)
    ]
    return torch.cat(parts, dim=-1)


def _record(model: "ManticoreModel", streams: Streams, boundaries: list[Tensor] | None) -> None:
    if boundaries is not None:
        boundaries.append(concatenate(model, streams))
