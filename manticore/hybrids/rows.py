"""The rows of a comparison: what is trained, on how much, and at which learning rate."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from manticore.config.recipes import HybridRecipe
from manticore.hybrids.assembly import component_names, dirichlet_rows
from manticore.hybrids.costs import hybrid_cost
from manticore.models.costs import component_cost
from manticore.seeds import torch_generator


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training of the table."""

    id: str
    """Stable name, such as hybrid or component-0-equal-flops."""
    label: str
    """What the table calls it."""
    group: str
    """hybrid, component, ensemble or ablation."""
    steps: int
    """Fine-tuning steps."""
    lr: float
    """Peak learning rate."""
    component: int | None = None
    """Index of the component that is trained alone; None for hybrids."""
    mixture: dict[str, Any] | None = None
    """mixture, embed, head; None keeps the start mixture."""
    loyalty: float | None = None
    """Replaces the recipe's loyalty; None keeps it."""
    overrides: tuple[str, ...] = field(default=())
    """Keys of the recipe that this hybrid changes; it is then built from scratch."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a trial's settings."""
        plain = asdict(self)
        return {**plain, "loyalty": None if self.loyalty is None else str(self.loyalty)}


def plan_rows(
    recipe: HybridRecipe, searched: dict[str, Any], configs: Any, spent_flops: float
) -> list[Row]:
    """All trainings that the recipe's `compare` section asks for.

    Args:
        searched: mixture, embed and head that the search found.
        configs: the hybrid's config; it knows the components.
        spent_flops: what projectors and search cost before fine-tuning.
    """
    compare, rows = recipe.compare, [_hybrid(recipe, searched)]
    if compare.component_equal_tokens:
        rows += [_component(recipe, k) for k in range(len(recipe.components))]
    if compare.component_equal_flops:
        rows += _equal_flops(recipe, configs, spent_flops)
    rows += _ablations(recipe, searched)
    return [_with_own_rate(row, recipe) for row in rows]


def learning_rates(row: Row, recipe: HybridRecipe) -> list[float]:
    """Rates to try for a row: one if it is set by id, else the recipe's factors of its default."""
    if row.id in recipe.compare.row_lr:
        return [row.lr]
    return [row.lr * factor for factor in recipe.compare.lr_factors]


def _with_own_rate(row: Row, recipe: HybridRecipe) -> Row:
    own = recipe.compare.row_lr.get(row.id)
    return row if own is None else Row(**{**asdict(row), "lr": own})


def _hybrid(recipe: HybridRecipe, searched: dict[str, Any], **changes: Any) -> Row:
    fields = {
        "id": "hybrid",
        "label": "Hybrid (searched mixture)"
        if recipe.search.method != "none"
        else "Hybrid (given mixture)",
        "group": "hybrid",
        "steps": recipe.finetune.steps,
        "lr": recipe.finetune.lr,
        "mixture": searched,
    }
    return Row(**{**fields, **changes})


def _component(recipe: HybridRecipe, k: int, **changes: Any) -> Row:
    component = recipe.components[k]
    fields = {
        "id": f"component-{k}",
        "label": f"{component_names(recipe)[k]} alone, equal tokens",
        "group": "component",
        "steps": recipe.finetune.steps,
        "lr": component.lr or recipe.finetune.lr,
        "component": k,
    }
    return Row(**{**fields, **changes})


def _equal_flops(recipe: HybridRecipe, config: Any, spent_flops: float) -> list[Row]:
    seq_len, rows = recipe.data.seq_len, []
    per_step = recipe.finetune.batch_size * seq_len
    budget = spent_flops + training_flops(config, seq_len) * per_step * recipe.finetune.steps
    for k, component in enumerate(config.components):
        own = component_cost(component, seq_len).training.total * per_step
        steps = max(1, round(budget / own))
        label = f"{component_names(recipe)[k]} alone, equal FLOPs"
        rows.append(
            _component(recipe, k, id=f"component-{k}-equal-flops", label=label, steps=steps)
        )
    return rows


def _ablations(recipe: HybridRecipe, searched: dict[str, Any]) -> list[Row]:
    compare = recipe.compare
    rows: list[tuple[str, str, dict[str, Any]]] = []
    if compare.no_cross_talk and recipe.hybrid.mixing == "streams":
        label = "Hybrid without cross-talk"
        rows.append(("no-cross-talk", label, {"loyalty": float("inf")}))
    if compare.uniform_mixture:
        rows.append(("uniform", "Hybrid, uniform mixture", {"mixture": None}))
    if compare.random_mixture:
        rows.append(("random", "Hybrid, random mixture", {"mixture": random_mixture(recipe)}))
    for variant in compare.variants:
        changes: dict[str, Any] = {"mixture": None, "overrides": variant.overrides}
        rows.append((variant.id, variant.label, changes))
    return [
        _hybrid(recipe, searched, id=id_, label=label, group="ablation", **changes)
        for id_, label, changes in rows
    ]


def random_mixture(recipe: HybridRecipe) -> dict[str, Any]:
    """A mixture drawn from the flat Dirichlet distribution, heads included."""
    generator = torch_generator(recipe.seed, "random mixture")
    shape = (recipe.hybrid.num_blocks + 1, len(recipe.components))
    drawn = dirichlet_rows(shape, generator)
    own_head = recipe.hybrid.own_head_mixture and recipe.hybrid.mixing == "streams"
    return {
        "mixture": drawn[:-1].tolist(),
        "embed": None,
        "head": drawn[-1].tolist() if own_head else None,
    }


def training_flops(config: Any, seq_len: int) -> float:
    """Training FLOPs per token of a hybrid at its uniform mixture (nothing skipped)."""
    uniform = torch.full((config.num_blocks, config.num_components), 1 / config.num_components)
    return hybrid_cost(config, uniform, seq_len=seq_len).training.total
