"""Tiny hybrids for tests: four unlike components, and ways to stir and save a hybrid."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manticore.hybrids.construction import projector_maps
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from tests.models.tiny import tiny

# Widths 32, 40, 24, 40 and depths 4, 5, 6, 5: two blocks divide some depths, four only one.
# Untied, tied, tied, untied; tables of 61, 63, 61 and 63 rows.
MEMBERS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("gpt_neox", 0, {}),
    ("mamba", 2, {}),
    (
        "gpt_neo",
        0,
        {"hidden_size": 24, "num_layers": 6, "attention_types": [[["global", "local"], 3]]},
    ),
    ("llama", 2, {}),
)
VOCAB_SIZE = 61
BATCH, SEQ_LEN = 2, 11


def member(index: int, **overrides: Any) -> PreTrainedModel:
    """One of four components; every call makes an equal model that shares nothing."""
    family, variant, settings = MEMBERS[index]
    return tiny(family, seed=index, variant=variant, **{**settings, **overrides})


def members(count: int = 2, **overrides: Any) -> list[PreTrainedModel]:
    """The first `count` components."""
    return [member(index, **overrides) for index in range(count)]


def build(
    components: list[PreTrainedModel] | None = None, *, stirred: bool = True, **options: Any
) -> ManticoreForCausalLM:
    """A hybrid of the given components (default: the first two), router no longer at zero."""
    chosen = members() if components is None else components
    hybrid = ManticoreForCausalLM.from_components(chosen, **options)
    return stir(hybrid) if stirred else hybrid


@torch.no_grad()
def stir(hybrid: ManticoreForCausalLM, seed: int = 7, scale: float = 0.3) -> ManticoreForCausalLM:
    """Draw projectors and router at random, so that whatever reads them shows."""
    generator = torch.Generator().manual_seed(seed)
    maps = projector_maps(hybrid)
    router = getattr(hybrid.model, "router", None)
    for linear in [*maps, router] if router is not None else maps:
        for parameter in linear.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return hybrid


def random_rows(*shape: int, seed: int = 0) -> Tensor:
    """Rows of the simplex, none of their weights small."""
    generator = torch.Generator().manual_seed(seed)
    return (0.7 * torch.randn(*shape, generator=generator)).softmax(dim=-1)


def one_hot(num_blocks: int, num_components: int, component: int | list[int]) -> Tensor:
    """Rows that use one component, or in each block the one that is named."""
    chosen = component if isinstance(component, list) else [component] * num_blocks
    return torch.eye(num_components)[chosen]


def reloaded(hybrid: ManticoreForCausalLM, folder: Path) -> ManticoreForCausalLM:
    """The hybrid after a way through its checkpoint."""
    hybrid.save_pretrained(folder)
    return type(hybrid).from_pretrained(folder)


def ids_for(batch: int = BATCH, seq_len: int = SEQ_LEN, seed: int = 0) -> Tensor:
    """Token ids (batch, seq) that every component knows, special ones left out."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB_SIZE, (batch, seq_len), generator=generator)


def padded(rows: list[Tensor], side: str, pad: int = 2) -> tuple[Tensor, Tensor]:
    """Sequences of different lengths as one batch: ids and mask, each (batch, seq)."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        ids[index, place], mask[index, place] = row, 1
    return ids, mask


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference between two tensors."""
    return (one - other).abs().max().item()
