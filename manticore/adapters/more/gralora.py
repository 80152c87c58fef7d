"""Between MoRe and PEFT's GraLoRA, whose tiles are MoRe's in another order.

Both functions return a configuration and weights in the form that PEFT saves and loads, as those of
`conversion` do.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import GraloraConfig
from torch import Tensor, nn

from manticore.adapters.monarch import MonarchShape
from manticore.adapters.more.carried import (
    PREFIX,
    adapted_layers,
    carried_config,
    shared_settings,
)
from manticore.adapters.more.config import MoReConfig

Weights = dict[str, Tensor]


@torch.no_grad()
def to_gralora(
    model: nn.Module, adapter_name: str = "default", permuted_rows: bool = False
) -> tuple[GraloraConfig, Weights]:
    """Write an adapter as PEFT's GraLoRA.

    GraLoRA needs nblocks to divide the block rank and both dimensions, and one size for all
    layers. Its output blocks are runs of rows, so the conversion is exact with
    `layout="contiguous"`. A strided adapter has the same numbers with its rows in another order:
    with `permuted_rows=True` it is converted all the same, and row i of the original change is row
    `manticore.adapters.monarch.row_order(shape)[i]` of the result.
    """
    weights: Weights = {}
    settings = carried_config(model, adapter_name)
    for name, layer in adapted_layers(model, adapter_name):
        shape = layer.shapes[adapter_name]
        _refuse_for_gralora(name, shape, settings, permuted_rows)
        a, b = layer.more_A[adapter_name], layer.more_B[adapter_name]
        n, r, block_in = shape.first_shape
        # MoRe numbers a block's outputs (term, output block), GraLoRA (output block, term).
        a = a.view(n, r // n, n, block_in).permute(0, 3, 2, 1).reshape(n, block_in, r)
        weights[f"{PREFIX}{name}.gralora_A"] = a.contiguous()
        scaled = b.transpose(1, 2) * layer.scaling[adapter_name]
        weights[f"{PREFIX}{name}.gralora_B"] = scaled.contiguous()
    rank = settings.block_rank
    shared = shared_settings(settings)
    shared.pop("exclude_modules")  # GraLoRA has no such setting
    return GraloraConfig(r=rank, alpha=rank, gralora_k=settings.nblocks, **shared), weights


def from_gralora(
    config: GraloraConfig, weights: Mapping[str, Tensor]
) -> tuple[MoReConfig, Weights]:
    """Write a GraLoRA adapter as MoRe with contiguous rows, exactly."""
    if config.hybrid_r:
        raise ValueError(
            f"hybrid_r={config.hybrid_r} adds a plain LoRA, which MoRe does not have. "
            "Only GraLoRA adapters with hybrid_r=0 can be converted."
        )
    n, r = config.gralora_k, config.r
    made: Weights = {}
    for key, value in weights.items():
        if key.endswith("gralora_A"):
            tiles = value.view(n, -1, n, r // n).permute(0, 3, 2, 1)  # (block, term, out block, in)
            made[key.replace("gralora_A", "more_A")] = tiles.reshape(n, r, -1).contiguous()
        elif key.endswith("gralora_B"):
            second = value.transpose(1, 2) * (config.alpha / r)
            made[key.replace("gralora_B", "more_B")] = second.contiguous()
        else:
            made[key] = value
    return MoReConfig(nblocks=n, block_rank=r, layout="contiguous", **shared_settings(config)), made


def _refuse_for_gralora(
    name: str, shape: MonarchShape, settings: MoReConfig, permuted_rows: bool
) -> None:
    n = shape.nblocks
    sizes = {"block_rank": shape.block_rank, "in": shape.in_features, "out": shape.out_features}
    wrong = [f"{what}={size}" for what, size in sizes.items() if size % n]
    if wrong:
        raise ValueError(
            f"GraLoRA needs nblocks={n} to divide everything; '{name}' has {', '.join(wrong)}. "
            "convert_to_lora has no such condition."
        )
    if (n, shape.block_rank) != (settings.nblocks, settings.block_rank):
        raise ValueError(
            f"GraLoRA has one size for all layers; '{name}' has nblocks={n}, "
            f"block_rank={shape.block_rank} by a pattern. convert_to_lora has no such condition."
        )
    if shape.layout != "contiguous" and not permuted_rows:
        raise ValueError(
            "A strided adapter equals a GraLoRA adapter only up to the order of output rows. "
            'Train with layout="contiguous", ask for permuted_rows=True, or use convert_to_lora.'
        )
