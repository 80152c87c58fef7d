"""Make a hybrid smaller: drop branches of little weight, and the layers nobody runs any more."""

import copy
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manticore.hybrids.closed_form import fit_projectors
from manticore.hybrids.configuration_manticore import ManticoreConfig
from manticore.hybrids.construction import join_components, mark_initialised
from manticore.models.shortening import keep_layers

if TYPE_CHECKING:
    from manticore.hybrids.modeling_manticore import ManticoreForCausalLM


@torch.no_grad()
def prune(
    hybrid: "ManticoreForCausalLM",
    threshold: float = 1e-3,
    *,
    one_hot: bool = False,
    batches: Iterable[dict[str, Tensor]] | None = None,
) -> "ManticoreForCausalLM":
    """A new hybrid without the branches whose weight is below `threshold`.

    Weights below the threshold become exact zeros and rows are normalised again. Layers that no
    block runs any more are removed, and so are components that nothing reads. The given hybrid
    is not changed; the layers that stay are shared with it.

    Args:
        threshold: 0 to 1; the largest weight of a row always stays.
        one_hot: keep only the largest weight of every row.
        batches: text for a closed-form refit. A path that switches component needs it: its
            translators carry everything, while with soft weights they carried corrections.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold={threshold}: give a weight from 0 to below 1.")
    smaller = shallow_hybrid(hybrid)
    for log_rows in smaller.mixture_parameters():
        # Rows are normalised when they are read, so those that lose nothing stay what they are.
        kept = sparsify(log_rows.float().softmax(dim=-1), threshold, one_hot)
        log_rows.masked_fill_(kept == 0, -torch.inf)
    if batches is not None:
        fit_projectors(smaller, batches)
    _remove_idle_layers(smaller)
    return _remove_idle_components(smaller)


def sparsify(weights: Tensor, threshold: float, one_hot: bool = False) -> Tensor:
    """Rows with small weights set to zero, normalised: same shape."""
    largest = weights.argmax(dim=-1, keepdim=True)
    keep = torch.zeros_like(weights, dtype=torch.bool).scatter_(-1, largest, True)
    if not one_hot:
        keep |= weights >= threshold
    kept = weights * keep
    return kept / kept.sum(dim=-1, keepdim=True)


def shallow_hybrid(hybrid: "ManticoreForCausalLM") -> "ManticoreForCausalLM":
    """A copy with its own config, mixture and projectors that shares the components' layers."""
    shared = {id(p): p for c in hybrid.model.components for p in [*c.parameters(), *c.buffers()]}
    shared |= {id(p): p for p in hybrid.heads.parameters()}
    return copy.deepcopy(hybrid, memo=dict(shared))


def _remove_idle_layers(hybrid: "ManticoreForCausalLM") -> None:
    config, rows = hybrid.config, hybrid.backbone.rows
    for k, component in enumerate(hybrid.model.components):
        partition = config.partition[k]
        used = [k in rows.active(block) for block in range(config.num_blocks)]
        counts = [(last - first) * on for (first, last), on in zip(partition, used, strict=True)]
        if not any(counts):
            # At most its embedding or its head is read, but a model without layers does not load.
            counts[next(b for b, (first, last) in enumerate(partition) if last > first)] = 1
        ends = list(itertools.accumulate(counts))
        indices = [
            first + i for (first, _), n in zip(partition, counts, strict=True) for i in range(n)
        ]
        if not all(used) and keep_layers(component, indices):
            config.partition[k] = [[end - n, end] for end, n in zip(ends, counts, strict=True)]


def _remove_idle_components(hybrid: "ManticoreForCausalLM") -> "ManticoreForCausalLM":
    config, rows = hybrid.config, hybrid.backbone.rows
    tied_block = config.num_blocks - 1 if config.mixing == "streams" else 0
    used = {k for block in range(config.num_blocks) for k in rows.active(block)}
    used |= set(rows.active_embed()) | set(rows.active_head(tied_block))
    if len(used) == config.num_components:
        return hybrid
    return select_components(hybrid, sorted(used))


def select_components(hybrid: "ManticoreForCausalLM", kept: list[int]) -> "ManticoreForCausalLM":
    """A hybrid of some of the components; the others must have no weight anywhere."""
    old, rows = hybrid.config, hybrid.backbone.rows
    values = old.to_dict()
    settings = {key: v for key, v in values.items() if not key.startswith("component_")}
    settings |= {
        "components": [old.components[k] for k in kept],
        "partition": [old.partition[k] for k in kept],
        "host": kept.index(old.host) if old.host in kept else 0,
    }
    if old.mixing == "shared" and len(kept) > 1:
        settings["shared_width"] = old.hidden_size  # projectors use all of it
    config = ManticoreConfig(**settings)
    components = [hybrid.model.components[k] for k in kept]
    heads = [hybrid.heads[k] for k in kept]
    mark_initialised([*components, *heads])
    smaller = type(hybrid)(config, components, heads)
    join_components(smaller)
    kept_rows = {name: row[..., kept] for name, row in rows.state_dict().items()}
    smaller.model.rows.load_state_dict(kept_rows)
    smaller.freeze_mixture(not rows.blocks.requires_grad)
    _copy_projectors(hybrid, smaller, kept)
    smaller.generation_config = copy.deepcopy(hybrid.generation_config)
    return smaller.train(hybrid.training)


def _copy_projectors(
    old: "ManticoreForCausalLM", new: "ManticoreForCausalLM", kept: list[int]
) -> None:
    if old.config.mixing == "streams":
        new.model.loyalty.load_state_dict(old.model.loyalty.state_dict())
        for boundary, j, k, linear in new.model.translators.pairs():
            source = old.model.translators.at(boundary, kept[j], kept[k])
            linear.load_state_dict(source.state_dict())
        _copy_router(old, new, kept)
        return
    for name in ("project_in", "project_out"):
        for block, maps in enumerate(getattr(new.model.projectors, name)):
            for k, linear in enumerate(maps):
                source = getattr(old.model.projectors, name)[block][kept[k]]
                linear.load_state_dict(source.state_dict())


def _copy_router(old: "ManticoreForCausalLM", new: "ManticoreForCausalLM", kept: list[int]) -> None:
    if new.model.router is None or old.model.router is None:
        return
    columns = torch.arange(sum(old.config.widths)).split(old.config.widths)
    chosen = torch.cat([columns[k] for k in kept])
    new.model.router.weight.copy_(old.model.router.weight[kept][:, chosen])
    new.model.router.bias.copy_(old.model.router.bias[kept])
