"""Parameters that no gradient reaches at the present mixture, because of zeros in its rows.

A branch of zero weight does not run, a stream that nobody reads has no effect, and a row with a
single weight that is not zero stays at 1 whatever its logarithm.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from manticore.models.supported import check_supported

if TYPE_CHECKING:
    from manticore.hybrids.modeling_manticore import ManticoreForCausalLM

Reads = list[dict[int, list[int]]]
"""[boundary][reader]: the streams that a component (or a head, at the last) reads there."""
Part = nn.Module | nn.Parameter | None


def idle_parameters(hybrid: "ManticoreForCausalLM") -> list[nn.Parameter]:
    """Parameters that training leaves as they are, each once; none where every weight counts."""
    used = {id(p) for part in _used_parts(hybrid, _needed_reads(hybrid)) for p in _held(part)}
    return [parameter for parameter in hybrid.parameters() if id(parameter) not in used]


def _held(part: Part) -> list[nn.Parameter]:
    if isinstance(part, nn.Module):
        return list(part.parameters())
    return [] if part is None else [part]


def _needed_reads(hybrid: "ManticoreForCausalLM") -> Reads:
    """Who reads what before each block and before the heads, as far as the logits depend on it."""
    model, rows = hybrid.model, hybrid.model.rows
    blocks = [rows.active(block) for block in range(model.num_blocks)]
    sources = [rows.active_embed(), *blocks]
    if model.mixing == "shared":  # one stream: whatever runs is read
        readers = [*blocks, rows.active_head(0)]
        return [dict.fromkeys(some, read) for some, read in zip(readers, sources, strict=True)]
    needed, reads = rows.active_head(model.num_blocks - 1), []
    for boundary in range(model.num_blocks, -1, -1):
        here = {k: _streams_read(hybrid, boundary, k, sources[boundary]) for k in needed}
        reads.append(here)
        needed = sorted({source for some in here.values() for source in some})
        if boundary == model.num_blocks and _uses_router(hybrid, here):
            needed = sources[boundary]  # the router reads all streams
    return reads[::-1]


def _streams_read(
    hybrid: "ManticoreForCausalLM", boundary: int, reader: int, sources: list[int]
) -> list[int]:
    keeps_to_itself = hybrid.model.loyalty.is_infinite[boundary] and reader in sources
    return [reader] if keeps_to_itself else sources


def _uses_router(hybrid: "ManticoreForCausalLM", heads: dict[int, list[int]]) -> bool:
    return getattr(hybrid.model, "router", None) is not None and len(heads) > 1


def _used_parts(hybrid: "ManticoreForCausalLM", reads: Reads) -> Iterator[Part]:
    model, heads = hybrid.model, reads[-1]
    entered = {source for some in reads[0].values() for source in some}
    yield from (model.components[k].get_input_embeddings() for k in entered)
    yield from (hybrid.heads[k] for k in heads)
    if _uses_router(hybrid, heads):
        yield model.router
    running = {k for some in reads[:-1] for k in some}
    for k in running | entered:
        yield from _around_layers(hybrid, k, k in running, k in entered)
    for block, some in enumerate(reads[:-1]):
        yield from (layer for k in some for layer in _layers(hybrid, k, block))
    yield from _rows(hybrid, reads)
    yield from _maps(hybrid, reads)


def _layers(hybrid: "ManticoreForCausalLM", k: int, block: int) -> list[nn.Module]:
    """Layers of one block, and the final norm behind the last one."""
    component, (first, last) = hybrid.model.components[k], hybrid.config.partition[k][block]
    family = check_supported(component.config)
    ends = first < last and block == hybrid.model.num_blocks - 1
    norm = [getattr(component, family.final_norm)] if ends else []
    return [*list(getattr(component, family.layers))[first:last], *norm]


def _around_layers(
    hybrid: "ManticoreForCausalLM", k: int, runs: bool, is_entered: bool
) -> Iterator[Part]:
    """The position table, where component k adds it, and what else surrounds its layers."""
    component = hybrid.model.components[k]
    family = check_supported(component.config)
    enters = runs if hybrid.model.mixing == "shared" else is_entered
    known = (family.layers, family.final_norm, family.position_table)
    for name, child in component.named_children():
        if (name == family.position_table and enters) or (
            name not in known and child is not component.get_input_embeddings() and runs
        ):
            yield child


def _rows(hybrid: "ManticoreForCausalLM", reads: Reads) -> Iterator[Part]:
    """Rows of the mixture with more than one weight, and loyalties that weigh against others."""
    model, rows = hybrid.model, hybrid.model.rows
    for boundary, some in enumerate(reads):
        if any(len(streams) > 1 for streams in some.values()):
            has_own = boundary == 0 and rows.embed is not None
            yield rows.embed if has_own else rows.blocks
        if any(len(streams) > 1 and reader in streams for reader, streams in some.items()):
            yield from getattr(model, "loyalty", nn.Module()).parameters()
    if len(reads[-1]) > 1:
        yield rows.blocks if rows.head is None else rows.head


def _maps(hybrid: "ManticoreForCausalLM", reads: Reads) -> Iterator[Part]:
    """Translators that are read, or projectors of components that are not alone."""
    model = hybrid.model
    if model.mixing == "streams":
        for boundary, some in enumerate(reads):
            for reader, streams in some.items():
                yield from (
                    model.translators.at(boundary, stream, reader)
                    for stream in streams
                    if stream != reader
                )
        return
    for block, some in enumerate(reads[:-1]):
        if len(some) > 1:
            yield from (model.projectors.into(block, k) for k in some)
            yield from (model.projectors.out_of(block, k) for k in some)
