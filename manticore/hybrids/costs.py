"""What a hybrid costs: parameters, FLOPs per token and cache bytes, by part and by mixture.

A branch of exactly zero weight does not run, and neither do the maps and heads that only it would
read. Conventions are those of `manticore.models.costs`; scaling by a mixture weight is not
counted, as no elementwise work is. A new token with a cache that sees T tokens costs what
`hybrid_cost(..., seq_len=T).forward` says.

Legend: K components of width d_k, B blocks, D = max d_k.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from manticore.hybrids.configuration_manticore import ManticoreConfig, is_tied
from manticore.hybrids.mixture import checked_rows
from manticore.models.costs import (
    CacheBytes,
    Cost,
    Flops,
    cache_bytes,
    embedding_cost,
    head_cost,
    layer_cost,
)

if TYPE_CHECKING:
    from manticore.hybrids.modeling_base import ManticorePreTrainedModel

Rows = Tensor | Sequence[Sequence[float]] | None
Row = Tensor | Sequence[float] | None


@dataclass(frozen=True, kw_only=True)
class HybridCost:
    """Cost of a hybrid at one mixture and one sequence length.

    The four parts count what runs: their parameters are read for every token, and their FLOPs
    are per token. `training` takes every weight to be trained.
    """

    components: Cost
    """Embeddings and layers of the active branches."""
    projectors: Cost
    """Translators or projectors that are read."""
    heads: Cost
    """Heads of non-zero weight."""
    router: Cost
    """The per-token head weights."""
    stored: dict[str, int]
    """All parameters by part, whether read or not; `mixture` holds loyalties, too."""

    @property
    def parameters(self) -> int:
        """All parameters of the checkpoint, shared ones once."""
        return sum(self.stored.values())

    @property
    def active_parameters(self) -> int:
        """Parameters that a forward pass reads; mixture rows are always read."""
        return self._total.parameters + self.stored["mixture"]

    @property
    def forward(self) -> Flops:
        """FLOPs per token of a forward pass."""
        return self._total.forward

    @property
    def training(self) -> Flops:
        """FLOPs per token of a forward and a backward pass."""
        return self._total.training

    @property
    def projector_flops_share(self) -> float:
        """Share of the forward pass spent between components, 0 to 1."""
        return self.projectors.forward.total / self.forward.total

    @property
    def _total(self) -> Cost:
        return self.components + self.projectors + self.heads + self.router


@dataclass(frozen=True)
class Active:
    """Which components run where, and nothing else about a mixture."""

    blocks: list[list[int]]
    """For each block."""
    embed: list[int]
    heads: list[int]


def hybrid_cost(
    config: ManticoreConfig,
    mixture: Rows = None,
    *,
    seq_len: int,
    embed: Row = None,
    head: Row = None,
) -> HybridCost:
    """Cost of a causal hybrid, from its config alone.

    Args:
        mixture: (num_blocks, K) weights, of which only the zeros matter; default: none is zero.
        seq_len: length of the sequences, at least 1.
        embed: (K,) weights of the embeddings, where they have their own.
        head: (K,) weights of the heads, where they have their own.
    """
    active = find_active(config, mixture, embed, head)
    maps = _sum(_map_cost(source, target) for source, target in used_maps(config, active))
    router = router_shape(config)
    return HybridCost(
        components=_sum(_component(config, k, active, seq_len) for k in _all(config)),
        projectors=maps,
        heads=_sum(_head(config, k) for k in active.heads),
        router=_map_cost(*router) if router and len(active.heads) > 1 else Cost(),
        stored=stored_parameters(config),
    )


def cost_of(hybrid: "ManticorePreTrainedModel", seq_len: int) -> HybridCost:
    """Cost of a hybrid at its present mixture."""
    return hybrid_cost(hybrid.config, seq_len=seq_len, **_present_rows(hybrid))


def hybrid_cache_bytes(
    config: ManticoreConfig,
    length: int,
    mixture: Rows = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> CacheBytes:
    """Cache of one sequence after `length` tokens; branches of zero weight hold nothing."""
    active = find_active(config, mixture, None, None)
    total = CacheBytes()
    for k, lo, hi, _ in _active_ranges(config, active):
        total += cache_bytes(config.components[k], length, dtype, lo=lo, hi=hi)
    return total


def cache_bytes_of(hybrid: "ManticorePreTrainedModel", length: int) -> CacheBytes:
    """Cache of one sequence at the hybrid's present mixture and dtype."""
    rows = _present_rows(hybrid)["mixture"]
    return hybrid_cache_bytes(hybrid.config, length, rows, dtype=hybrid.dtype)


def find_active(config: ManticoreConfig, mixture: Rows, embed: Row, head: Row) -> Active:
    """Components with weight in each block, at the embeddings and at the heads."""
    shape = (config.num_blocks, config.num_components)
    if mixture is None:
        blocks = [list(_all(config)) for _ in range(config.num_blocks)]
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


def router_shape(config: ManticoreConfig) -> tuple[int, int] | None:
    """(inputs, outputs) of the router, None without one."""
    if config.mixing != "streams" or not config.router or config.num_components == 1:
        return None
    return sum(config.widths), config.num_components


def stored_parameters(config: ManticoreConfig) -> dict[str, int]:
    """Parameters of a causal hybrid by part: components, projectors, heads, router, mixture."""
    streams = config.mixing == "streams"
    router = router_shape(config)
    own_rows = config.own_embed_mixture + config.own_head_mixture
    loyalties = config.num_blocks + 1 if streams and config.learn_loyalty else 0
    return {
        "components": sum(
            (_embedding(config, k) + layer_cost(c, 0, c.num_hidden_layers, 1)).parameters
            for k, c in enumerate(config.components)
        ),
        "projectors": sum(_map_cost(*shape).parameters for shape in _all_maps(config)),
        "heads": sum(_head(config, k).parameters for k in _all(config)),
        "router": _map_cost(*router).parameters if router else 0,
        "mixture": (config.num_blocks + own_rows) * config.num_components + loyalties,
    }


def _used_translators(config: ManticoreConfig, active: Active) -> Iterator[tuple[int, int]]:
    readers = [*active.blocks, active.heads]
    sources = [active.embed, *active.blocks]
    for loyalty, read, targets in zip(config.loyalty_values(), sources, readers, strict=True):
        for target in targets:
            keeps_to_itself = loyalty == float("inf") and target in read
            for source in read:
                if source != target and not keeps_to_itself:
                    yield config.widths[source], config.widths[target]


def _all_maps(config: ManticoreConfig) -> Iterator[tuple[int, int]]:
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


def _component(config: ManticoreConfig, k: int, active: Active, seq_len: int) -> Cost:
    component = config.components[k]
    cost = Cost()
    for owner, lo, hi, ends in _active_ranges(config, active):
        if owner == k:
            cost += layer_cost(component, lo, hi, seq_len, final_norm=ends)
    return cost + _read_tables(config, k, active)


def _read_tables(config: ManticoreConfig, k: int, active: Active) -> Cost:
    """Token and position tables of component k, those that are read."""
    component = config.components[k]
    tokens = config.vocab_size * component.hidden_size
    positions = _embedding(config, k).parameters - tokens
    # A tied head reads the token table even where the embedding has no weight.
    reads_tokens = k in active.embed or (is_tied(component) and k in active.heads)
    enters = k in active.embed
    if config.mixing == "shared":  # positions enter at the first block that the component runs
        enters = any(k in block for block in active.blocks)
    return Cost(embedding_parameters=reads_tokens * tokens + enters * positions)


def _active_ranges(config: ManticoreConfig, active: Active) -> Iterator[tuple[int, int, int, bool]]:
    """(component, first layer, last + 1, ends with the final norm) of everything that runs."""
    for block, members in enumerate(active.blocks):
        for k in members:
            lo, hi = config.partition[k][block]
            if lo < hi:
                yield k, lo, hi, block == config.num_blocks - 1


def _embedding(config: ManticoreConfig, k: int) -> Cost:
    return embedding_cost(config.components[k], vocab_size=config.vocab_size)


def _head(config: ManticoreConfig, k: int) -> Cost:
    return head_cost(config.components[k], vocab_size=config.vocab_size)


def _map_cost(inputs: int, outputs: int) -> Cost:
    product = inputs * outputs
    return Cost(
        layer_parameters=product + outputs,
        forward=Flops(matmul=2 * product),
        training=Flops(matmul=6 * product),
    )


def _present_rows(hybrid: "ManticorePreTrainedModel") -> dict[str, Any]:
    rows = hybrid.backbone.rows
    return {
        "mixture": rows.weights.detach(),
        "embed": None if rows.embed is None else rows.log_embed_row().exp().detach(),
        "head": None if rows.head is None else rows.log_head_row(0).exp().detach(),
    }


def _nonzero(row: Tensor) -> list[int]:
    return [k for k, weight in enumerate(row.tolist()) if weight != 0]


def _all(config: ManticoreConfig) -> range:
    return range(config.num_components)


def _sum(costs: Iterator[Cost]) -> Cost:
    total = Cost()
    for cost in costs:
        total += cost
    return total
