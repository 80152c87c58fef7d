"""What a hybrid costs: parameters, FLOPs per token and cache bytes, by part and by mixture.

Only what runs is counted (`active_parts`). Conventions are those of `manticore.models.costs`;
scaling by a mixture weight is not counted, as no elementwise work is. A new token with a cache
that sees T tokens costs what `hybrid_cost(..., seq_len=T).forward` says.

Legend: K components.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from manticore.hybrids.active_parts import (
    Active,
    Row,
    Rows,
    active_ranges,
    all_maps,
    find_active,
    router_shape,
    used_maps,
)
from manticore.hybrids.component_configs import is_tied
from manticore.hybrids.configuration_manticore import ManticoreConfig
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
        components=_sum(
            _component(config, k, active, seq_len) for k in range(config.num_components)
        ),
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
    for k, lo, hi, _ in active_ranges(config, active):
        total += cache_bytes(config.components[k], length, dtype, lo=lo, hi=hi)
    return total


def cache_bytes_of(hybrid: "ManticorePreTrainedModel", length: int) -> CacheBytes:
    """Cache of one sequence at the hybrid's present mixture and dtype."""
    rows = _present_rows(hybrid)["mixture"]
    return hybrid_cache_bytes(hybrid.config, length, rows, dtype=hybrid.dtype)


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
        "projectors": sum(_map_cost(*shape).parameters for shape in all_maps(config)),
        "heads": sum(_head(config, k).parameters for k in range(config.num_components)),
        "router": _map_cost(*router).parameters if router else 0,
        "mixture": (config.num_blocks + own_rows) * config.num_components + loyalties,
    }


def _component(config: ManticoreConfig, k: int, active: Active, seq_len: int) -> Cost:
    component = config.components[k]
    cost = Cost()
    for owner, lo, hi, ends in active_ranges(config, active):
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


def _sum(costs: Iterator[Cost]) -> Cost:
    total = Cost()
    for cost in costs:
        total += cost
    return total
