"""Which modules to adapt: names that reach every layer of a model that can take an adapter.

PEFT's own defaults name attention projections, so that on a hybrid most layers get nothing (4 of
56 in Nemotron-H). Here every matrix product of the repeating stack is named, except those whose
weight the layer's code reads past the module (`manticore.adapters.weight_reads`): an adapter there
would train without any effect where the kernels are installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from manticore.adapters.stack import Projection, layers_of
from manticore.adapters.weight_reads import weight_reads

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_GATED_MLP = ("gate_proj", "up_proj", "down_proj")

DEFAULT_TARGETS: dict[str, tuple[str, ...]] = {
    "mamba": ("in_proj",),
    "mamba2": ("in_proj",),
    "falcon_mamba": ("in_proj",),
    "jamba": ("in_proj", "x_proj", "out_proj", *_ATTENTION, *_GATED_MLP),
    "nemotron_h": ("in_proj", *_ATTENTION, "up_proj", "down_proj"),
    "falcon_h1": ("in_proj", *_ATTENTION, *_GATED_MLP),
    "bamba": ("in_proj", *_ATTENTION, *_GATED_MLP),
    "granitemoehybrid": ("in_proj", *_ATTENTION, "input_linear", "output_linear"),
    "qwen3_next": ("in_proj_qkvz", "in_proj_ba", "out_proj", *_ATTENTION, *_GATED_MLP),
}
"""What `default_targets` finds for these families, for those who have no model at hand."""

MIN_FEATURES = 4
"""A matrix with fewer rows or columns (the gate of a shared expert) is left alone."""


def default_targets(model: nn.Module, *, fused_too: bool = False) -> list[str]:
    """Return `target_modules` that reach every layer that can take an adapter, for any method.

    Args:
        model: a plain model or a hybrid, not yet adapted. On the meta device it does as well.
        fused_too: also name projections that only fused kernels bypass, in training. Train such a
            model inside `manticore.tuning.unfused.without_fused_kernels`.

    Returns:
        The shortest endings of module names that match these modules and no other.
    """
    wanted = [
        projection.name
        for layer in layers_of(model)
        for projection in layer.projections
        if can_adapt(projection, fused_too)
    ]
    if not wanted:
        raise ValueError(
            f"{type(model).__name__} has no linear module in a repeating stack that an adapter "
            "would reach. Name target_modules yourself."
        )
    others = [name for name, _ in model.named_modules() if name and name not in set(wanted)]
    return shortest_endings(wanted, others)


def can_adapt(projection: Projection, fused_too: bool = False) -> bool:
    """Whether an adapter at this place has an effect wherever the model is trained."""
    read = weight_reads(projection.parent).get(projection.attribute)
    if read is not None and not (fused_too and read.only_in_training):
        return False
    return smallest_side(projection.base) >= MIN_FEATURES


def smallest_side(linear: nn.Module) -> int:
    """The smaller number of features of a linear module, quantized ones included."""
    sides = [getattr(linear, name, None) for name in ("in_features", "out_features")]
    if None in sides:  # transformers' Conv1D
        return min(linear.weight.shape)  # type: ignore[arg-type]
    return min(int(side) for side in sides if side is not None)


def shortest_endings(wanted: Sequence[str], others: Iterable[str]) -> list[str]:
    """The shortest endings, in whole parts, that match `wanted` and nothing in `others`."""
    forbidden = {ending for name in others for ending in _all_endings(name)}
    found: dict[str, None] = {}
    for name in wanted:
        choices = [ending for ending in _all_endings(name) if ending not in forbidden]
        found.setdefault(choices[0] if choices else name)
    return list(found)


def _all_endings(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
