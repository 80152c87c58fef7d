"""Set the output scale of new mixers on a few batches, so that copied parts get what they expect.

A normed head has mean square one; an average of values is often ten times smaller, and a copied
W_o, MLP and the later layers were trained on that. Each layer is fed what the source feeds it, and
its gain is set so that

    with W_o copied      every head is as large as the same head of the source
    with W_o new         the whole output is as large as the source's

Averages of copied values need no gain. Where values are new they are scaled instead, and a W_o that
was copied in front of a mixer with its own projections is scaled as a whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from manticore.conversion.heads import Heads
from manticore.conversion.modeling_converted import ConvertedForCausalLM
from manticore.conversion.observing import Observed, observe
from manticore.conversion.plan import TransferPlan, TransferRow
from manticore.conversion.recurrent_heads import RecurrentHeads
from manticore.mixers.interface import Mixer


@torch.no_grad()
def calibrate(
    model: ConvertedForCausalLM,
    teacher: ConvertedForCausalLM,
    input_ids: Tensor,
    plan: TransferPlan,
) -> TransferPlan:
    """Scale the new mixers of `model` in place.

    Args:
        teacher: the source with all its attention.
        input_ids: (batch, seq); a few thousand tokens are plenty for one number per head.

    Returns:
        The plan, with what was scaled.
    """
    input_ids = input_ids.to(next(model.parameters()).device)
    rows = {row.target: row for row in plan.rows}
    for index, seen in enumerate(observe(teacher, input_ids)):
        mixer: Any = model.model.layers[index].mixer
        prefix = f"model.layers.{index}.mixer"
        new = {
            leaf for leaf in ("output", "v")
            if (row := rows.get(f"{prefix}.{leaf}.weight")) and not row.is_inherited
        }  # fmt: skip
        scaled = _calibrate_layer(mixer, seen, new)
        if scaled:
            name = f"{prefix}.{scaled}"
            rows[name] = _scaled(rows[name])
    return replace(plan, rows=tuple(rows.get(r.target, r) if r.target else r for r in plan.rows))


def _calibrate_layer(mixer: Mixer, seen: Observed, new: set[str]) -> str | None:
    """Scale one mixer; the name of the tensor that was changed, None if nothing was.

    Args:
        new: which of `output` and `v` were not inherited.
    """
    if isinstance(mixer, RecurrentHeads):
        if "output" in new:
            mixer.gain.mul_(rms(seen.mixed) / rms(mixer(seen.read)))
        else:
            mixer.gain.mul_(_head_ratios(mixer, seen))
        return "gain"
    if isinstance(mixer, Heads) and "output" not in new:
        if "v" not in new:
            return None  # averages of the source's values: the scale is the source's already
        assert seen.heads is not None  # attention has an output projection
        mixer.v.weight.mul_(rms(seen.heads) / rms(_heads_of(mixer, seen)))
        return "v.weight"
    weight = getattr(getattr(mixer, "output", None), "weight", None)
    if isinstance(weight, Tensor):
        weight.mul_(rms(seen.mixed) / rms(mixer(seen.read)))
        return "output.weight"
    return None


def _scaled(row: TransferRow) -> TransferRow:
    """The row of a tensor that was multiplied by a number."""
    note = ", ".join(filter(None, [row.note, "scaled to the source's output"]))
    return replace(row, note=note, how="mapped" if row.how == "copied" else row.how)


def _heads_of(mixer: Heads, seen: Observed) -> Tensor:
    """What the mixer hands to its output projection when fed as the source's was."""
    given: list[Tensor] = []
    handle = mixer.output.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    try:
        mixer(seen.read)
    finally:
        handle.remove()
    return given[0]


def _head_ratios(mixer: Heads, seen: Observed) -> Tensor:
    """Size of each head in the source over its size here, for each channel: (H K)."""
    assert seen.heads is not None
    given = _heads_of(mixer, seen)
    n_heads = mixer.spec.n_heads
    wanted, here = (x.float().unflatten(-1, (n_heads, -1)) for x in (seen.heads, given))
    ratio = rms(wanted, (0, 1, 3)) / rms(here, (0, 1, 3))
    return ratio.clamp(1e-3, 1e3).repeat_interleave(mixer.spec.head_dim)


def rms(x: Tensor, dim: tuple[int, ...] | None = None) -> Tensor:
    """Root of the mean square, kept away from zero: a pruned head is zero in both models."""
    return x.float().square().mean(dim).sqrt().clamp(min=1e-12)
