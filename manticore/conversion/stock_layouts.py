"""Converted models that a class of transformers computes: which class, or what is in the way.

The rows are in `stock_attention` and `stock_hybrids`, what they need in `stock_facts`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from manticore.conversion.configuration_converted import ConvertedConfig
from manticore.conversion.modeling_converted import ConvertedForCausalLM
from manticore.conversion.stock_attention import ATTENTION
from manticore.conversion.stock_class import StockClass
from manticore.conversion.stock_facts import ATTENDING, ON_SOURCE, facts, mixer_names
from manticore.conversion.stock_hybrids import HYBRIDS
from manticore.models.stock import SPECIAL_TOKENS, NoStockClassError, stock_model

STOCK: dict[str, StockClass] = {**ATTENTION, **HYBRIDS}
_NEVER = {
    "mamba": (
        "Jamba's is normed-mamba, and classes with plain Mamba have no attention and no MLPs"
    ),
    f"gated-deltanet{ON_SOURCE}": (
        "gated-deltanet on the source's projections has no short convolution. OLMo-Hybrid's and "
        'Qwen3-Next\'s is {"mixer": "gated-deltanet", "projections": "own"}'
    ),
    f"mamba2-heads{ON_SOURCE}": (
        "mamba2-heads keeps the source's projections, and no class does. Granite's and Bamba's "
        "is mamba2"
    ),
}


def as_stock_model(model: ConvertedForCausalLM) -> PreTrainedModel:
    """The same function as a model of transformers' own class.

    Raises:
        NoStockClassError: no class expresses it; the message names the first difference to the
            class that comes nearest.
    """
    return blocks_as_stock_model(model.config, model.state_dict())


def blocks_as_stock_model(config: ConvertedConfig, state: Mapping[str, Tensor]) -> PreTrainedModel:
    """As above, from the config and the tensors of a converted model."""
    stock = stock_config(config)
    return stock_model(stock, STOCK[stock.model_type].tensors(state, config))


def stock_config(config: ConvertedConfig) -> PreTrainedConfig:
    """The config of the class that expresses a converted model; raises as above."""
    found = facts(config)
    candidates = {n: row for n, row in STOCK.items() if _has_mixers(row, found)}
    if not candidates:
        raise NoStockClassError(f"No class of transformers has this layout: {_why(config)}.")
    differences = {name: _differences(row, found) for name, row in candidates.items()}
    nearest = min(candidates, key=lambda name: len(differences[name]))
    if differences[nearest]:
        raise NoStockClassError(
            f"No class of transformers has this layout. {nearest} comes nearest, but "
            f"{differences[nearest][0]}."
        )
    special = {name: getattr(config, name, None) for name in SPECIAL_TOKENS}
    return CONFIG_MAPPING[nearest](**STOCK[nearest].fields(config), **special)


def _has_mixers(row: StockClass, found: dict[str, str]) -> bool:
    return found["token mixers"] in row.needs["token mixers"]


def _why(config: ConvertedConfig) -> str:
    """What no class has, in token mixers."""
    mixers = mixer_names(config)
    known = {name for row in STOCK.values() for name in row.needs["token mixers"][0].split(" and ")}
    for name in mixers:
        if name not in known:
            return _NEVER.get(name, f"none that is known here has the mixer {name}")
    if not any(name in ATTENDING for name in mixers):
        return (
            f"those with {' and '.join(mixers)} need a layer of attention, which tells their "
            "cache how long it is. Keep one"
        )
    return f"none mixes {' and '.join(mixers)}"


def _differences(row: StockClass, found: dict[str, str]) -> list[str]:
    return [
        f"{fact}: {found[fact]} here, {' or '.join(row.needs[fact])} there"
        for fact in found
        if fact in row.needs and found[fact] not in row.needs[fact]
    ]
