"""Whether a ladder's goals hold, seed by seed: nats, tokens to a loss, distance to the teacher."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from manticore.config.transfer_recipe import TransferGoal

Row = Mapping[str, Any]


def tokens_to(curve: Sequence[Mapping[str, float]], loss: float) -> float | None:
    """Tokens at which a validation curve first reaches a loss, between two looks by a straight
    line; None if it never does."""
    before: Mapping[str, float] | None = None
    for point in curve:
        if point["loss"] <= loss:
            if before is None or before["loss"] == point["loss"]:
                return float(point["tokens"])
            part = (before["loss"] - loss) / (before["loss"] - point["loss"])
            return before["tokens"] + part * (point["tokens"] - before["tokens"])
        before = point
    return None


def judge(
    rows: Sequence[Row], goals: Sequence[TransferGoal], teacher: float
) -> list[dict[str, Any]]:
    """Each goal with its values by seed; it is met when every seed meets it.

    Args:
        teacher: its validation loss.
    """
    by_id = {row["id"]: row for row in rows}
    return [_judged(goal, by_id, teacher) for goal in goals]


def _judged(goal: TransferGoal, rows: Mapping[str, Row], teacher: float) -> dict[str, Any]:
    row = rows[goal.row]
    if goal.kind == "near-teacher":
        values: list[float | None] = [start - teacher for start in row["by_seed"]["start"]]
        text = f"{row['label']}, before training: {{}} nats above the teacher"
    elif goal.kind == "better-by":
        other = rows[str(goal.than)]
        pairs = zip(other["by_seed"]["loss"], row["by_seed"]["loss"], strict=True)
        values = [theirs - ours for theirs, ours in pairs]
        text = f"{row['label']} against {other['label']}: {{}} nats lower"
    else:
        other = rows[str(goal.than)]
        values = [
            speed_up(ours, theirs)
            for ours, theirs in zip(row["curves"], other["curves"], strict=True)
        ]
        text = f"{row['label']} reaches the last loss of {other['label']} {{}} times as fast"
    return {
        "kind": goal.kind,
        "row": goal.row,
        "than": goal.than,
        "amount": goal.amount,
        "values": values,
        "met": all(v is not None and _holds(goal, v) for v in values),
        "sentence": _sentence(text, values, goal),
    }


def speed_up(curve: Sequence[Mapping[str, float]], other: Sequence[Mapping[str, float]]) -> Any:
    """Tokens that the other took to its last loss over those that this one takes to it.

    One that is there before any training is counted with the tokens of its first look.
    """
    needed = tokens_to(curve, other[-1]["loss"])
    if needed is None:
        return None
    if needed == curve[0]["tokens"]:
        needed = curve[1]["tokens"]
    first = tokens_to(other, other[-1]["loss"])
    assert first is not None  # it reaches its own last loss
    return first / needed


def _holds(goal: TransferGoal, value: float) -> bool:
    return value <= goal.amount if goal.kind == "near-teacher" else value >= goal.amount


def _sentence(text: str, values: Sequence[float | None], goal: TransferGoal) -> str:
    known = [value for value in values if value is not None]
    digits = 1 if goal.kind == "faster-by" else 3
    said = "never" if not known else f"{statistics.fmean(known):.{digits}f}"
    if len(known) > 1:
        said += f" ± {statistics.stdev(known):.{digits}f}"
    if known and len(known) < len(values):
        said += f" (in {len(known)} of {len(values)} seeds)"
    bound = "at most" if goal.kind == "near-teacher" else "at least"
    met = all(value is not None and _holds(goal, value) for value in values)
    return f"{text.format(said)} (goal: {bound} {goal.amount:g}): {'met' if met else 'not met'}."
