"""Which parts of a hybrid run at a mixture: branches, the maps between them, and the router.

A branch of exactly zero weight does not run, and neither do the maps and heads that only it would
read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from manticore.hybrids.configuration_manticore import ManticoreConfig
from manticore.hybrids.mixture import checked_rows

Rows = Tensor | Sequence[Sequence[float]] | None
Row = Tensor | Sequence[float] | None


@dataclass(frozen=True)
class Active:
    """Which components run where, and nothing else about a mixture."""

    blocks: list[list[int]]
    """For each block."""
    embed: list[int]
    heads: list[int]


def find_active(config: ManticoreConfig, mixture: Rows, embed: Row, head: Row) -> Active:
    """Components with weight in each block, at the embeddings and at the heads."""
    shape = (config.num_blocks, config.num_components)
    if mixture is None:
        blocks = [list(range(config.num_components)) for _ in range(config.num_blocks)]
    else:
        blocks = [_nonzero(row) for row in checked_rows(mixture, shape, "mixture")]
    tied_block = config.num_blocks - 1 if config.mixing == "streams" else 0
    own = {"embed": embed, "head": head}
    own_rows = {
        name: None if row is None else _nonzero(checked_rows(row, shape[1:], name))
        for name, row in own.items()
    }
    return Active(
        blocks=blocks,
        embed=own_rows["embed"] or blocks[0],
        heads=own_rows["head"] or blocks[tied_block],
    )


def active_ranges(config: ManticoreConfig, active: Active) -> Iterator[tuple[int, int, int, bool]]:
    """(component, first layer, last + 1, ends with the final norm) of everything that runs."""
    for block, members in enumerate(active.blocks):
        for k in members:
            lo, hi = config.partition[k][block]
            if lo < hi:
                yield k, lo, hi, block == config.num_blocks - 1


def used_maps(config: ManticoreConfig, active: Active) -> Iterator[tuple[int, int]]:
    """(inputs, outputs) of every translator or projector that is applied."""
    if config.mixing == "streams":
        yield from _used_translators(config, active)
        return
    for block in active.blocks:
        if len(block) > 1:  # alone, the gate is 1 and the projectors have no part
            for k in block:
                yield config.hidden_size, config.widths[k]
                yield config.widths[k], config.hidden_size


def _used_translators(config: ManticoreConfig, active: Active) -> Iterator[tuple[int, int]]:
    readers = [*active.blocks, active.heads]
    sources = [active.embed, *active.blocks]
    for loyalty, read, targets in zip(config.loyalty_values(), sources, readers, strict=True):
        for target in targets:
            keeps_to_itself = loyalty == float("inf") and target in read
            for source in read:
                if source != target and not keeps_to_itself:
                    yield config.widths[source], config.widths[target]


def all_maps(config: ManticoreConfig) -> Iterator[tuple[int, int]]:
    """(inputs, outputs) of every translator or projector that the hybrid has."""
    if config.mixing == "shared":
        # A component alone has none.
        widths = config.widths if config.num_components > 1 else []
        pairs = [(config.hidden_size, width) for width in widths]
        for _ in range(config.num_blocks):
            yield from [*pairs, *[(out, into) for into, out in pairs]]
        return
    for _ in range(config.num_blocks + 1):
        for j, source in enumerate(config.widths):
            yield from [(source, target) for k, target in enumerate(config.widths) if k != j]


def router_shape(config: ManticoreConfig) -> tuple[int, int] | None:
    """(inputs, outputs) of the router, None without one."""
    if config.mixing != "streams" or not config.router or config.num_components == 1:
        return None
    return sum(config.widths), config.num_components


def _nonzero(row: Tensor) -> list[int]:
    return [k for k, weight in enumerate(row.tolist()) if weight != 0]
