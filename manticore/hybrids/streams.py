"""`mixing="streams"`: every component keeps its own residual stream and reads the others.

Legend: K components of width d_k, B blocks, boundary b = 0..B (boundary B lies before the heads).
The formulas are those of `ManticoreModel`'s docstring.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manticore.hybrids.inputs import Inputs

if TYPE_CHECKING:
    from manticore.hybrids.modeling_backbone import ManticoreModel


Streams = dict[int, Tensor]
Weights = list[list[Tensor]]  # [k][j]: how much component k reads of stream j


def run_streams(
    model: "ManticoreModel", inputs: Inputs, boundaries: list[Tensor] | None
) -> tuple[Streams, Weights]:
    """Run all blocks; returns y_B of the active components, and the weights to read them with."""
    streams, weights, block = model.enter_streams(inputs), reading_weights(model), 0
    while block < model.num_blocks:
        _record(model, streams, boundaries)
        end = block + 1 if boundaries is not None else end_of_path(model, block)
        reads = {
            k: read(model, block, k, streams, weights[block]) for k in model.rows.active(block)
        }
        streams = {k: model.run_block(k, block, x, inputs, end) for k, x in reads.items()}
        block = end
    _record(model, streams, boundaries)
    return streams, weights[-1]


def end_of_path(model: "ManticoreModel", block: int) -> int:
    """The block up to which the same component is alone, so that its layers are one range."""
    active, end = model.rows.active(block), block + 1
    while len(active) == 1 and end < model.num_blocks and model.rows.active(end) == active:
        end += 1
    return end


def reading_weights(model: "ManticoreModel") -> list[Weights]:
    """w_bkj of every boundary b as [b][k][j], each a tensor without dimensions.

    All come from one small softmax, and without gradients they are remembered, because a handful
    of operations for every read would be a good part of the time of a decoded token. On a path
    all are 1, and where no gradient asks for them there are none.
    """
    if torch.is_grad_enabled():
        return _reading_weights(model)
    if model.rows.is_path:
        return [[[]] * len(model.widths)] * (model.num_blocks + 1)
    sources = [*model.rows.row_parameters(), model.loyalty.value]
    return model.remembered_weights.get(sources, lambda: _reading_weights(model))


def _reading_weights(model: "ManticoreModel") -> list[Weights]:
    rows = model.rows.log_boundary_rows()  # (B + 1, K)
    count = rows.shape[1]
    loyalty = model.loyalty.at_boundaries(rows.device)  # (B + 1,)
    own = loyalty.unsqueeze(-1).expand_as(rows).diag_embed()  # (B + 1, K, K)
    values = iter((rows.unsqueeze(1) + own).softmax(dim=-1).flatten().unbind())
    return [[[next(values) for _ in range(count)] for _ in range(count)] for _ in range(len(rows))]


def read(
    model: "ManticoreModel", boundary: int, target: int, streams: Streams, weights: Weights
) -> Tensor:
    """x_bk: what component `target` sees of all streams at a boundary, (batch, seq, d_target)."""
    if model.loyalty.is_infinite[boundary] and target in streams:
        return streams[target]
    return model.translators.gather(boundary, target, streams, weights[target])


def concatenate(model: "ManticoreModel", streams: Streams) -> Tensor:
    """All streams side by side, (batch, seq, sum of widths); a skipped one is zero."""
    some = next(iter(streams.values()))
    parts = [
        streams[k] if k in streams else some.new_zeros(*some.shape[:-1], width)
        for k, width in enumerate(model.widths)
    ]
    return torch.cat(parts, dim=-1)


def _record(model: "ManticoreModel", streams: Streams, boundaries: list[Tensor] | None) -> None:
    if boundaries is not None:
        boundaries.append(concatenate(model, streams))
