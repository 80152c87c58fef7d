"""Between MoRe and other adapters: LoRA, GraLoRA, and a plain change of weights.

Every function returns a configuration and weights in the form that PEFT saves and loads:

    config, weights = convert_to_lora(model)
    other = peft.get_peft_model(base, config)
    peft.set_peft_model_state_dict(other, weights)

The two exact statements used here: a MoRe adapter is a LoRA adapter of rank nblocks * block_rank
whose factors are mostly zero; and a LoRA adapter of rank r is a MoRe adapter of any number of
blocks with block_rank = nblocks * r, each tile a piece of the product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import GraloraConfig, LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor, nn

from manticore.adapters.monarch import MonarchShape, expand_first, expand_second, slots
from manticore.adapters.more.config import MoReConfig
from manticore.adapters.more.embedding import MoReEmbedding
from manticore.adapters.more.layer import MoReLayer

Weights = dict[str, Tensor]
_PREFIX = "base_model.model."
# Settings that mean the same in all three configurations.
_SHARED = (
    "task_type",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
)


@torch.no_grad()
def convert_to_lora(model: nn.Module, adapter_name: str = "default") -> tuple[LoraConfig, Weights]:
    """Write an adapter as LoRA, exactly: the way to serve it where only LoRA is known.

    The rank is nblocks * block_rank and alpha equals it, so LoRA's scale is 1. (PEFT's own
    `convert_to_lora` accepts MoRe as well: any rank, by singular value decomposition.)
    """
    weights: Weights = {}
    ranks: dict[str, int] = {}
    for name, layer in _layers(model, adapter_name):
        shape = layer.shapes[adapter_name]
        a = expand_first(layer.more_A[adapter_name], shape)
        b = expand_second(layer.more_B[adapter_name], shape) * layer.scaling[adapter_name]
        kind = "lora_embedding_{}" if isinstance(layer, MoReEmbedding) else "lora_{}.weight"
        weights[f"{_PREFIX}{name}.{kind.format('A')}"] = a.contiguous()
        weights[f"{_PREFIX}{name}.{kind.format('B')}"] = b.contiguous()
        ranks[name] = shape.inner
    common = max(ranks.values())
    other = {name: rank for name, rank in ranks.items() if rank != common}
    config = LoraConfig(
        r=common, lora_alpha=common, rank_pattern=other, alpha_pattern=dict(other),
        **_shared(_config(model, adapter_name)),
    )  # fmt: skip
    return config, weights


def save_as_lora(folder: str | Path, model: nn.Module, adapter_name: str = "default") -> None:
    """Save an adapter as a LoRA adapter that needs no manticore to load."""
    config, weights = convert_to_lora(model, adapter_name)
    config.inference_mode = True
    config.save_pretrained(str(folder))
    tensors = {key: value.contiguous().clone() for key, value in weights.items()}
    save_file(tensors, Path(folder) / "adapter_model.safetensors", metadata={"format": "pt"})


def from_lora(
    config: LoraConfig, weights: Mapping[str, Tensor], nblocks: int = 1
) -> tuple[MoReConfig, Weights]:
    """Write a LoRA adapter as MoRe, exactly; its scale alpha / r moves into the weights.

    Args:
        config: plain LoRA, without DoRA, trained biases and other variants.
        weights: as PEFT saves them.
        nblocks: blocks of the result, with block rank nblocks * r.
    """
    _refuse_variants(config)
    made: Weights = {}
    for key, a, b in _lora_pairs(weights):
        name = key.removeprefix(_PREFIX)
        shape = MonarchShape(
            in_features=a.shape[1], out_features=b.shape[0], nblocks=nblocks,
            block_rank=nblocks * a.shape[0],
        )  # fmt: skip
        first, second = _split(a, b * _lora_scale(config, name, a.shape[0]), shape)
        made[f"{key}.more_A"], made[f"{key}.more_B"] = first, second
    ranks = {name: nblocks * rank for name, rank in (config.rank_pattern or {}).items()}
    return (
        MoReConfig(
            nblocks=nblocks, block_rank=nblocks * config.r, rank_pattern=ranks, **_shared(config)
        ),
        made,
    )


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
    settings = _config(model, adapter_name)
    for name, layer in _layers(model, adapter_name):
        shape = layer.shapes[adapter_name]
        _refuse_for_gralora(name, shape, settings, permuted_rows)
        a, b = layer.more_A[adapter_name], layer.more_B[adapter_name]
        n, r, block_in = shape.first_shape
        # MoRe numbers a block's outputs (term, output block), GraLoRA (output block, term).
        a = a.view(n, r // n, n, block_in).permute(0, 3, 2, 1).reshape(n, block_in, r)
        weights[f"{_PREFIX}{name}.gralora_A"] = a.contiguous()
        scaled = b.transpose(1, 2) * layer.scaling[adapter_name]
        weights[f"{_PREFIX}{name}.gralora_B"] = scaled.contiguous()
    rank = settings.block_rank
    shared = _shared(settings)
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
    return MoReConfig(nblocks=n, block_rank=r, layout="contiguous", **_shared(config)), made


def from_dense(
    model: nn.Module, deltas: Mapping[str, Tensor], adapter_name: str = "default"
) -> dict[str, float]:
    """Set a model's adapter to the best approximation of given weight changes.

    Args:
        model: a model that has the adapter.
        deltas: changes by name of module, as in the base model, in its weights' orientation.

    Returns:
        By name, the squared error as a share of the squared norm of the change.
    """
    layers = dict(_layers(model, adapter_name))
    unknown = sorted(set(deltas) - set(layers))
    if unknown:
        raise ValueError(
            f"No adapter {adapter_name!r} on {', '.join(unknown)}. Known: {', '.join(layers)}."
        )
    return {name: layers[name].set_delta_weight(adapter_name, d) for name, d in deltas.items()}


def _layers(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, MoReLayer]]:
    """Yield the layers that have the adapter, by their names in the base model."""
    found = False
    for name, module in model.named_modules():
        if isinstance(module, MoReLayer) and adapter_name in module.more_A:
            found = True
            yield name.removeprefix(_PREFIX), module
    if not found:
        raise ValueError(f"The model has no MoRe adapter named {adapter_name!r}.")


def _config(model: Any, adapter_name: str) -> MoReConfig:
    settings: MoReConfig = model.peft_config[adapter_name]
    if settings.bias != "none":
        raise ValueError(
            f"bias={settings.bias!r} trained biases of the base model, which no conversion carries."
        )
    return settings


def _shared(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name, None) for name in _SHARED if hasattr(config, name)}


def _split(a: Tensor, b: Tensor, shape: MonarchShape) -> tuple[Tensor, Tensor]:
    """Write the product b a as Monarch factors; every tile gets all of its terms."""
    n, block_in, block_out = shape.blocks, shape.block_in, shape.block_out
    a = nn.functional.pad(a, (0, n * block_in - shape.in_features))
    b = nn.functional.pad(b, (0, 0, 0, n * block_out - shape.out_features))
    first, second = a.new_zeros(shape.first_shape), b.new_zeros(shape.second_shape)
    used: dict[tuple[int, int], int] = {}
    for k, q, l, p in slots(shape):  # noqa: E741 - the letters of manticore.adapters.monarch
        term = used.get((l, k), 0)
        used[l, k] = term + 1
        if term < a.shape[0]:
            first[k, q] = a[term, k * block_in : (k + 1) * block_in]
            second[l, :, p] = b[l::n, term]
    return first, second


def _lora_pairs(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    for key, a in weights.items():
        if ".lora_A." in key or ".lora_embedding_A" in key:
            b = weights[key.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")]
            if a.ndim != 2:
                raise ValueError(f"'{key}' belongs to a convolution, which MoRe does not adapt.")
            yield key.partition(".lora_")[0], a, b
        elif ".lora_B." not in key and ".lora_embedding_B" not in key:
            raise ValueError(f"'{key}' is not a factor of a plain LoRA adapter.")


def _lora_scale(config: LoraConfig, name: str, rank: int) -> float:
    alphas = config.alpha_pattern or {}
    alpha = alphas.get(get_pattern_key(alphas.keys(), name), config.lora_alpha)
    return float(alpha / (rank**0.5 if config.use_rslora else rank))


def _refuse_variants(config: LoraConfig) -> None:
    for setting in ("use_dora", "lora_bias", "target_parameters", "trainable_token_indices"):
        if getattr(config, setting, None):
            raise ValueError(f"LoRA with {setting} is more than a product of two factors.")
    if config.bias != "none":
        raise ValueError(f"bias={config.bias!r} trained biases, which no conversion carries.")


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
