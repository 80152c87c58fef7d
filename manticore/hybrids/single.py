"""Hybrids that compute what one of their components computes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from manticore.models.stock import NoStockClassError, component_model

if TYPE_CHECKING:
    from manticore.hybrids.modeling_manticore import ManticoreForCausalLM


def as_component(hybrid: ManticoreForCausalLM) -> PreTrainedModel:
    """The only component that a pruned or one-hot hybrid runs, as its own class.

    Its weights are copies, so the hybrid stays what it is.

    Raises:
        NoStockClassError: another component takes part; the message names where first.
    """
    k = only_component(hybrid)
    return component_model(hybrid.model.components[k], hybrid.heads[k], hybrid.config)


def only_component(hybrid: ManticoreForCausalLM) -> int:
    """Index of the component that embeds, runs every block and has the head, all alone."""
    rows, config = hybrid.backbone.rows, hybrid.config
    tied_block = config.num_blocks - 1 if config.mixing == "streams" else 0
    parts = [("embeddings", rows.active_embed())]
    parts += [(f"block {b + 1}", rows.active(b)) for b in range(config.num_blocks)]
    parts.append(("heads", rows.active_head(tied_block)))
    first = parts[0][1][0]
    for (name, active), before in zip(parts, ["", *(name for name, _ in parts)], strict=False):
        if len(active) > 1:
            routed = name == "heads" and getattr(hybrid.model, "router", None) is not None
            raise NoStockClassError(
                f"The hybrid still mixes components {', '.join(map(str, active))} in its {name}"
                f"{', weighed by a router' if routed else ''}. Prune it one-hot."
            )
        if active != [first]:
            between = "a translator" if config.mixing == "streams" else "a change of stream"
            raise NoStockClassError(
                f"The hybrid goes from component {first} to component {active[0]} between {before} "
                f"and {name}, and {between} stands there."
            )
    return first
