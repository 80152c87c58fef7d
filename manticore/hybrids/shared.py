"""`mixing="shared"`: one stream of width D = max d_k, as in the paper (gated projectors).

    h_0  = sum_k a_1k pad(e_k)
    x_bk = (1 - a_bk) In_bk(h_{b-1}) + a_bk trunc(h_{b-1}, d_k)
    h_b  = sum_k a_bk [ (1 - a_bk) Out_bk(y_bk) + a_bk pad(y_bk, D) ],   y_bk = Block_bk(x_bk)

Kept faithful for reproduction. On a one-hot path that switches component every gate is 1, so no
projector acts and the path cannot translate; `mixing="streams"` is the mend.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from manticore.hybrids.inputs import Inputs
from manticore.hybrids.projectors import pad_width

if TYPE_CHECKING:
    from manticore.hybrids.modeling_backbone import ManticoreModel


def run_shared(model: "ManticoreModel", inputs: Inputs, boundaries: list[Tensor] | None) -> Tensor:
    """Run all blocks; returns h_B, (batch, seq, D)."""
    hidden = _mix_embeddings(model, inputs)
    for block in range(model.config.num_blocks):
        if boundaries is not None:
            boundaries.append(hidden)
        hidden = _run_mixed_block(model, block, hidden, inputs)
    if boundaries is not None:
        boundaries.append(hidden)
    return hidden


def _mix_embeddings(model: "ManticoreModel", inputs: Inputs) -> Tensor:
    weights = model.rows.log_embed_row().exp()
    width = model.config.hidden_size
    mixed: Any = None
    for k in model.rows.active_embed():
        embedded = model.embed_component(k, inputs)
        term = pad_width(embedded, width) * weights[k].to(embedded.dtype)
        mixed = term if mixed is None else mixed + term
    return mixed


def _run_mixed_block(model: "ManticoreModel", block: int, hidden: Tensor, inputs: Inputs) -> Tensor:
    weights = model.rows.log_row(block).exp()
    active = model.rows.active(block)
    mixed: Any = None
    for k in active:
        gate = weights[k].to(hidden.dtype)
        x = read_shared(model, block, k, hidden, gate, alone=len(active) == 1)
        if model.is_entry(k, block):
            x = model.enter_component(k, x, inputs)
        y = model.run_block(k, block, x, inputs)
        term = gate * write_shared(model, block, k, y, gate, alone=len(active) == 1)
        mixed = term if mixed is None else mixed + term
    return mixed


def read_shared(
    model: "ManticoreModel", block: int, k: int, hidden: Tensor, gate: Tensor, alone: bool
) -> Tensor:
    """x_bk: (batch, seq, D) -> (batch, seq, d_k)."""
    raw = hidden[..., : model.config.widths[k]]
    if alone:  # the gate is 1: the projector has no part in it and is skipped
        return raw
    return (1 - gate) * model.projectors.into(block, k)(hidden) + gate * raw


def write_shared(
    model: "ManticoreModel", block: int, k: int, y: Tensor, gate: Tensor, alone: bool
) -> Tensor:
    """Component k's output in the shared space: (batch, seq, d_k) -> (batch, seq, D)."""
    raw = pad_width(y, model.config.hidden_size)
    if alone:
        return raw
    return (1 - gate) * model.projectors.out_of(block, k)(y) + gate * raw
