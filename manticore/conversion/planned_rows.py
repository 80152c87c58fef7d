"""The plans of a recipe's rows, from shapes alone: what cannot be is told before any training."""

from __future__ import annotations

from manticore.config.transfer_recipe import StudentConfig, TransferRecipe
from manticore.conversion.plan import TransferPlan
from manticore.conversion.planning import make_plan
from manticore.conversion.reading import Source
from manticore.conversion.trained_parts import adapted
from manticore.conversion.transfer import converted_config, empty_target


def plan_rows(recipe: TransferRecipe, source: Source) -> dict[str, TransferPlan]:
    """What becomes of every tensor, by row; raises a `ValueError` for a row that cannot be."""
    plans = {}
    for row in recipe.rows:
        try:
            plans[row.id] = plan_row(row, source)
        except ValueError as error:
            raise ValueError(f"Row {row.id}: {error}") from error
    return plans


def plan_row(row: StudentConfig, source: Source) -> TransferPlan:
    """The plan of one row, whose adapter must fit its student."""
    model = empty_target(converted_config(source, row.target, row.keep))
    plan, _ = make_plan(source, model, row.copy)
    if row.adapter is not None:
        adapted(model, plan, row.adapter, seed=0)
    return plan
