"""The plans and the costs of a recipe's rows, from shapes alone, before any training."""

from __future__ import annotations

from manticore.config.transfer_recipe import StudentConfig, TransferRecipe
from manticore.conversion.accounting import Ledger
from manticore.conversion.plan import TransferPlan
from manticore.conversion.planning import make_plan
from manticore.conversion.reading import Source
from manticore.conversion.student import is_calibrated
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


def row_flops(
    recipe: TransferRecipe, row: StudentConfig, source: Source, plan: TransferPlan
) -> float:
    """What all stages of a row cost, the teacher included; steps that are frozen save some."""
    seq_len, (align, steps) = recipe.data.seq_len, recipe.steps_of(row)
    student = converted_config(source, row.target, row.keep)
    ledger = Ledger.of(converted_config(source, "attention"), student, seq_len)
    converted = sum(layer != {"mixer": "attention"} for layer in student.layers)
    if is_calibrated(recipe, row):
        ledger.calibrate(recipe.calibration_rows * seq_len, converted)
    step_tokens = recipe.train.batch_size * seq_len
    ledger.align(align * step_tokens, converted)
    frozen = 1.0 if row.adapter else 0.0
    how = {"frozen": frozen, "new": 1 - plan.share_inherited, "distil": row.distil}
    return ledger.after_training(steps * step_tokens, how)["flops"]
