"""Between MoRe and LoRA, and from a plain change of weights; `gralora` has GraLoRA.

The functions about LoRA return a configuration and weights in the form that PEFT saves and loads:

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

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor, nn

from manticore.adapters.monarch import MonarchShape, expand_first, expand_second, slots
from manticore.adapters.more.carried import (
    PREFIX,
    adapted_layers,
    carried_config,
    shared_settings,
)
from manticore.adapters.more.config import MoReConfig
from manticore.adapters.more.embedding import MoReEmbedding

Weights = dict[str, Tensor]


@torch.no_grad()
def convert_to_lora(model: nn.Module, adapter_name: str = "default") -> tuple[LoraConfig, Weights]:
    """Write an adapter as LoRA, exactly: the way to serve it where only LoRA is known.

    The rank is nblocks * block_rank and alpha equals it, so LoRA's scale is 1. (PEFT's own
    `convert_to_lora` accepts MoRe as well: any rank, by singular value decomposition.)
    """
    weights: Weights = {}
    ranks: dict[str, int] = {}
    for name, layer in adapted_layers(model, adapter_name):
        shape = layer.shapes[adapter_name]
        a = expand_first(layer.more_A[adapter_name], shape)
        b = expand_second(layer.more_B[adapter_name], shape) * layer.scaling[adapter_name]
        kind = "lora_embedding_{}" if isinstance(layer, MoReEmbedding) else "lora_{}.weight"
        weights[f"{PREFIX}{name}.{kind.format('A')}"] = a.contiguous()
        weights[f"{PREFIX}{name}.{kind.format('B')}"] = b.contiguous()
        ranks[name] = shape.inner
    common = max(ranks.values())
    other = {name: rank for name, rank in ranks.items() if rank != common}
    config = LoraConfig(
        r=common, lora_alpha=common, rank_pattern=other, alpha_pattern=dict(other),
        **shared_settings(carried_config(model, adapter_name)),
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
        name = key.removeprefix(PREFIX)
        shape = MonarchShape(
            in_features=a.shape[1], out_features=b.shape[0], nblocks=nblocks,
            block_rank=nblocks * a.shape[0],
        )  # fmt: skip
        first, second = _split(a, b * _lora_scale(config, name, a.shape[0]), shape)
        made[f"{key}.more_A"], made[f"{key}.more_B"] = first, second
    ranks = {name: nblocks * rank for name, rank in (config.rank_pattern or {}).items()}
    return (
        MoReConfig(
            nblocks=nblocks,
            block_rank=nblocks * config.r,
            rank_pattern=ranks,
            **shared_settings(config),
        ),
        made,
    )


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
    layers = dict(adapted_layers(model, adapter_name))
    unknown = sorted(set(deltas) - set(layers))
    if unknown:
        raise ValueError(
            f"No adapter {adapter_name!r} on {', '.join(unknown)}. Known: {', '.join(layers)}."
        )
    return {name: layers[name].set_delta_weight(adapter_name, d) for name, d in deltas.items()}


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
