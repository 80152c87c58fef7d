"""Read a pretrained transformer into canonical blocks: its specification and its tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from manticore.conversion.block_spec import BlockSpec
from manticore.conversion.sources import SOURCES, Place, SourceFamily


@dataclass(frozen=True)
class SourceTensor:
    """One tensor in its canonical form, and where it came from."""

    value: Tensor
    """In the canonical form; on the meta device where only shapes were read."""
    name: str
    """The source's own name of what it was read from."""
    change: str
    """What was done to it, in words; empty: nothing."""


@dataclass(frozen=True)
class Source:
    """A pretrained transformer, read."""

    model_type: str
    block: BlockSpec
    tensors: dict[str, SourceTensor]
    """By canonical name, that is the name in a `ConvertedForCausalLM` that keeps attention."""
    names: dict[str, int]
    """Every tensor of the source and its size; each is read into at least one of `tensors`."""
    special_tokens: dict[str, int | list[int] | None]
    """Ids of the tokens that begin, end and pad a text."""
    max_positions: int | None = None
    """Positions that it was made for, as its config says."""


def read_source(model: PreTrainedModel) -> Source:
    """Read a causal language model.

    Raises:
        ValueError: a family without a row, or tensors that its row does not know (a quantized
            model, an adapter): converting it would lose them silently.
    """
    family, block = source_family(model.config), read_block(model.config)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    # A tied head is another name of the table. Loaded and built models differ in listing it.
    if block.tied:
        state.pop("lm_head.weight", None)
    tensors: dict[str, SourceTensor] = {}
    for canonical, module, change in places(family, block):
        for leaf in ("weight", "bias"):
            name = f"{module}.{leaf}"
            if name in state:
                apply, words = CHANGES[change]
                value = apply(state[name], block)
                tensors[f"{canonical}.{leaf}"] = SourceTensor(value, name, words)
    unread = sorted(set(state) - {tensor.name for tensor in tensors.values()})
    if unread:
        raise ValueError(
            f"The {model.config.model_type} source has {len(unread)} tensors that are in no place "
            f"of its family (first: {unread[0]}). Merge adapters and load it without quantization."
        )
    special = {
        name: getattr(model.config, name, None)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    names = {name: tensor.numel() for name, tensor in state.items()}
    longest = getattr(model.config, "max_position_embeddings", None)
    return Source(model.config.model_type, block, tensors, names, special, longest)


def check_finite(source: Source) -> None:
    """Raise where a number of the source is none: it would be in every logit of the result."""
    for tensor in source.tensors.values():
        if tensor.value.is_meta:
            raise ValueError(
                f"The source's {tensor.name} has no numbers: it lies on the meta device. Load the "
                "source whole, without offloading."
            )
        if not tensor.value.isfinite().all():
            count = int((~tensor.value.isfinite()).sum())
            raise ValueError(
                f"{count:,} of the {tensor.value.numel():,} numbers in the source's {tensor.name} "
                "are not finite. Load a checkpoint from before they became so, or in a dtype that "
                "holds its weights (float16 ends at 65504)."
            )


def read_block(config: PreTrainedConfig) -> BlockSpec:
    """The blocks of a source, from its config alone."""
    return source_family(config).block(config)


def source_family(config: PreTrainedConfig) -> SourceFamily:
    """The row of a family; an error that names the known ones where there is none."""
    if config.model_type not in SOURCES:
        raise ValueError(
            f"Models of family {config.model_type!r} cannot be converted. Known: "
            f"{', '.join(sorted(SOURCES))}. Choose a source of one of these families, or add a "
            "row to manticore/conversion/sources.py."
        )
    return SOURCES[config.model_type]


def places(family: SourceFamily, block: BlockSpec) -> list[tuple[str, str, str]]:
    """(canonical module, module of the source, change) of everything that a model may hold."""
    found = [(canonical, *_split(place)) for canonical, place in family.stem.items()]
    for index in range(block.n_layers):
        for canonical, place in family.layer.items():
            module, change = _split(place)
            name = f"model.layers.{index}.{canonical}"
            found.append((name, f"{family.layers}.{index}.{module}", change))
    return found


def _split(place: Place) -> tuple[str, str]:
    return (place, "none") if isinstance(place, str) else place


Change = Callable[[Tensor, BlockSpec], Tensor]


def _neox_part(part: int) -> Change:
    def take(fused: Tensor, block: BlockSpec) -> Tensor:
        # Rows lie as (head, q | k | v, channel).
        by_head = fused.unflatten(0, (block.n_heads, 3, block.head_dim))
        return by_head[:, part].flatten(0, 1)

    return take


def _gpt2_part(part: int) -> Change:
    def take(fused: Tensor, block: BlockSpec) -> Tensor:
        # The last dimension holds q | k | v, one after the other.
        return fused.chunk(3, dim=-1)[part].t() if fused.dim() == 2 else fused.chunk(3)[part]

    return take


def neighbours_to_halves(rows: Tensor, block: BlockSpec) -> Tensor:
    """Reorder rows of q or k, so that rotated pairs (2i, 2i + 1) become (i, i + R/2).

    The same order in q and in k leaves every score as it is, so this is exact.
    """
    rotated = 2 * len(block.rotary_frequencies)
    by_head = rows.unflatten(0, (-1, block.head_dim))
    order = [*range(0, rotated, 2), *range(1, rotated, 2), *range(rotated, block.head_dim)]
    return by_head[:, order].flatten(0, 1)


CHANGES: dict[str, tuple[Change, str]] = {
    "none": (lambda tensor, block: tensor, ""),
    "transposed": (lambda tensor, block: tensor.t(), "transposed"),
    "halves": (neighbours_to_halves, "rows reordered: rotated pairs from neighbours to halves"),
    **{
        f"neox-{part}": (_neox_part(i), f"rows of {part} out of (head, q|k|v, channel)")
        for i, part in enumerate("qkv")
    },
    **{
        f"gpt2-{part}": (_gpt2_part(i), f"columns of {part} out of q|k|v, transposed")
        for i, part in enumerate("qkv")
    },
}
