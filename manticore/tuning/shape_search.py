"""The search over adapter shapes: one look, successive halving, and a table beside other methods.

The one-shot choice and the shapes that are the same everywhere start together. Each rung trains
all that are left from the beginning for its steps, at the middle learning rate, and keeps the
better ones by validation (Jamieson and Talwalkar, 2016, arXiv:1502.07943, with fresh starts). The
last ones become rows of the recipe's table, with the same search for a rate and as many seeds as
every other method.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from manticore.config.adapter_recipe import (
    AdaptRecipe,
    MethodConfig,
    ShapeSearchConfig,
)
from manticore.seeds import derive_seed
from manticore.tuning.experiment import TuningExperiment, badness
from manticore.tuning.methods import DEFAULT
from manticore.tuning.models import tuned_model
from manticore.tuning.one_shot import values_of, weight_changes
from manticore.tuning.search_findings import front_of, look_notes, notes, winner
from manticore.tuning.shapes import (
    NONE,
    Allocation,
    ModuleKind,
    allocate,
    module_kinds,
    parameters_of,
    settings_of,
    title_of,
    uniform,
)
from manticore.tuning.trial import prepared


def search_shapes(experiment: TuningExperiment) -> dict[str, Any]:
    """Everything: one look, rungs, the table with the finalists, the front, and what to say of it.

    Args:
        experiment: its recipe has a `search`; resumable in its folder.
    """
    recipe = experiment.recipe
    assert recipe.search is not None
    kinds = recipe_kinds(experiment)
    chosen, shares = one_shot(experiment, kinds)
    found = candidates(kinds, recipe.search, chosen)
    history, names = halve(experiment, kinds, found)
    finalists = [finalist(kinds, name, found[name]) for name in names]
    methods = (*recipe.methods, *finalists)
    table = dataclasses.replace(experiment, recipe=dataclasses.replace(recipe, methods=methods))
    rows = table.rows()
    metric, by = recipe.evaluate.metrics[0], recipe.rates.by
    look = {name: shares[title_of(found[name])] for name in found}
    return {
        "budget": recipe.search.budget,
        "probe": recipe.search.probe,
        "kinds": [dataclasses.asdict(kind) for kind in kinds],
        "one_shot": {ending: list(choice) for ending, choice in chosen.items()},
        "look": look,
        "history": history,
        "finalists": {f"search-{name}": fragment(kinds, name, found[name]) for name in names},
        "rows": rows,
        "front": front_of(rows, metric),
        "winner": winner(rows, [method.id for method in finalists], by),
        "notes": [
            *look_notes(
                title_of(chosen), "one-shot" in names, look, history[0] if history else None, by
            ),
            *notes(rows, metric),
        ],
    }


def recipe_kinds(experiment: TuningExperiment) -> list[ModuleKind]:
    """The kinds of modules of the recipe's model, those that hold the smallest shape at least.

    Raises:
        ValueError: a target that matches nothing, or a budget below the smallest adapter on the
            cheapest kind.
    """
    recipe = experiment.recipe
    assert recipe.search is not None
    data = prepared(recipe, experiment.base)[1]
    method = MethodConfig(id="full", label="full", method="full")
    model = tuned_model(recipe, method, experiment.base, data, experiment.seeds[0])
    return kinds_within(model, recipe.search)


def kinds_within(model: Any, search: ShapeSearchConfig) -> list[ModuleKind]:
    """The kinds of modules that a search is about, when its budget holds a shape of one of them."""
    kinds = module_kinds(model, None if search.targets == (DEFAULT,) else search.targets)
    least = (min(search.nblocks), min(search.block_ranks))
    cheapest = min(kinds, key=lambda kind: kind.parameters(least))
    if cheapest.parameters(least) > search.budget:
        raise ValueError(
            f"search.budget={search.budget:,} holds no shape: {least[0]} x {least[1]} on "
            f"{cheapest.ending} alone has {cheapest.parameters(least):,} parameters. Allow that "
            "many at least, or smaller block_ranks."
        )
    return kinds


def one_shot(
    experiment: TuningExperiment, kinds: Sequence[ModuleKind]
) -> tuple[Allocation, dict[str, float]]:
    """The best allocation by one look at the data; kept as a stage.

    Returns:
        It, and the share of the change that it and each uniform shape hold, by title.
    """
    folder = experiment.folder
    if not folder.is_done("one-shot"):
        folder.finish("one-shot", _look(experiment, kinds))
    record = folder.record("one-shot")
    chosen = {ending: (int(n), int(r)) for ending, (n, r) in record["allocation"].items()}
    return chosen, {**record["uniform"], title_of(chosen): record["share_held"]}


def _look(experiment: TuningExperiment, kinds: Sequence[ModuleKind]) -> dict[str, Any]:
    """The look itself: the allocation, and the shares of the change, as a record."""
    recipe, search, seed = experiment.recipe, experiment.recipe.search, experiment.seeds[0]
    assert search is not None
    _, data = prepared(recipe, experiment.base)
    method = MethodConfig(id="full", label="full", method="full")
    batches = data.batches(recipe.train.batch_size, derive_seed(seed, recipe.name, "probe"))
    changes = weight_changes(
        tuned_model(recipe, method, experiment.base, data, seed),
        kinds,
        batches.batch_at,
        probe=search.probe,
        steps=search.probe_steps,
        lr=search.probe_lr,
        seed=derive_seed(seed, recipe.name, "probe", "training"),
    )
    values = values_of(kinds, changes, search.nblocks, search.block_ranks)
    chosen = allocate(kinds, values, search.budget)
    total = sum(float(change.double().square().sum()) for change in changes.values())

    def share(allocation: Allocation) -> float:
        return sum(values[e][c] for e, c in allocation.items()) / (total or 1.0)

    return {
        "allocation": {ending: list(choice) for ending, choice in chosen.items()},
        "share_held": share(chosen),
        "uniform": {title_of(shape): share(shape) for shape in uniform_shapes(kinds, search)},
    }


def uniform_shapes(kinds: Sequence[ModuleKind], search: ShapeSearchConfig) -> list[Allocation]:
    """The same shape everywhere, within the budget: of the greatest rank first, fewest blocks."""
    smallest = min(min(kind.in_features, kind.out_features) for kind in kinds)
    shapes = [
        uniform(kinds, (n, r))
        for r in sorted(search.block_ranks, reverse=True)
        for n in sorted(search.nblocks)
        if n * r <= smallest
    ]
    return [shape for shape in shapes if parameters_of(kinds, shape) <= search.budget]


def candidates(
    kinds: Sequence[ModuleKind], search: ShapeSearchConfig, chosen: Allocation
) -> dict[str, Allocation]:
    """Who starts: the one-shot choice, then uniform shapes up to the number asked for."""
    found = {"one-shot": chosen} if any(c != NONE for c in chosen.values()) else {}
    for shape in uniform_shapes(kinds, search):
        if len(found) < search.candidates and shape not in found.values():
            found[title_of(shape).replace(" ", "")] = shape
    return found


def halve(
    experiment: TuningExperiment, kinds: Sequence[ModuleKind], found: Mapping[str, Allocation]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Train by rungs; what each rung saw, and the names that are left, best first.

    Raises:
        ValueError: no shape of a rung gave a finite measure, so that none can be preferred.
    """
    recipe = experiment.recipe
    search = recipe.search
    assert search is not None
    lr = middle_rate(recipe)
    alive, history = list(found), []
    for steps in search.rungs:
        if len(alive) <= search.finalists:
            break
        wanted = [(finalist(kinds, name, found[name]), lr, experiment.seeds[0]) for name in alive]
        results = experiment.train_all(wanted, steps)
        scores = {
            name: float(result["validation"][recipe.rates.by])
            for name, result in zip(alive, results, strict=True)
        }
        worth = {
            n: badness({recipe.rates.by: score}, recipe.rates.by) for n, score in scores.items()
        }
        if math.isinf(min(worth.values())):
            raise ValueError(
                f"Every shape diverged within {steps} steps at learning rate {lr:g}, the middle of "
                "rates.rates, at which shapes are screened. Give lower rates."
            )
        ranked = sorted(alive, key=worth.__getitem__)
        alive = ranked[: max(search.finalists, round(search.keep * len(alive)))]
        history.append({"steps": steps, "lr": lr, "scores": scores, "kept": alive})
    return history, alive[: search.finalists]


def middle_rate(recipe: AdaptRecipe) -> float:
    """The rate at which shapes are screened."""
    rates = sorted(recipe.rates.rates) or [recipe.train.lr]
    return rates[len(rates) // 2]


def finalist(kinds: Sequence[ModuleKind], name: str, allocation: Allocation) -> MethodConfig:
    """A shape as a method of the recipe's table."""
    settings, targets = settings_of(kinds, allocation)
    title = title_of(allocation)
    label = f"MoRe {title}" if len(title) < 24 else f"MoRe, {name} shapes"
    return MethodConfig(
        id=f"search-{name}", label=f"{label} (found)", method="more", settings=settings,
        targets=targets,
    )  # fmt: skip


def fragment(kinds: Sequence[ModuleKind], name: str, allocation: Allocation) -> dict[str, Any]:
    """A finalist for people: settings, targets, parameters."""
    settings, targets = settings_of(kinds, allocation)
    return {
        "title": title_of(allocation),
        "parameters": parameters_of(kinds, allocation),
        "settings": settings,
        "targets": list(targets),
    }
