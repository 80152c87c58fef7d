"""What a hybrid should achieve against its baselines, judged from the rows of a table."""

from __future__ import annotations

from typing import Any

RowRecord = dict[str, Any]


def judge(rows: list[RowRecord], kinds: list[str]) -> list[dict[str, Any]]:
    """Goals met, not met, or not to be judged (None), each with the numbers behind it.

    Args:
        rows: records with `id`, `group`, `loss` and, for several seeds, `loss_sd`.
        kinds: kinds of text.
    """
    by_id = {row["id"]: row for row in rows}
    hybrid = by_id.get("hybrid")
    if hybrid is None:
        return []
    equal = [r for r in rows if r["group"] == "component" and not r["id"].endswith("equal-flops")]
    flops = [r for r in rows if r["id"].endswith("equal-flops")]
    goals = []
    if equal:
        goals.append(_beats_best(hybrid, equal))
        goals += [_near_specialist(hybrid, equal, kind) for kind in kinds]
    if "ensemble-logits" in by_id:
        goals.append(_beats(hybrid, by_id["ensemble-logits"], "better than the logit ensemble"))
    if flops:
        best = min(flops, key=_mean)
        goals.append(_beats(hybrid, best, "better than the best component at equal FLOPs"))
    if "no-cross-talk" in by_id:
        goals.append(_cross_talk(hybrid, by_id["no-cross-talk"]))
    return goals


def _mean(row: RowRecord) -> float:
    return row["loss"]["mean"]


def _spread(*rows: RowRecord) -> float | None:
    """The larger sample standard deviation of the rows' means; None for a single seed."""
    values = [(row.get("loss_sd") or {}).get("mean") for row in rows]
    known = [float(value) for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def _goal(text: str, met: bool | None, detail: str) -> dict[str, Any]:
    return {"text": text, "met": met, "detail": detail}


def _beats_best(hybrid: RowRecord, components: list[RowRecord]) -> dict[str, Any]:
    best = min(components, key=_mean)
    gain, spread = _mean(best) - _mean(hybrid), _spread(hybrid, best)
    detail = f"{_mean(hybrid):.3f} against {_mean(best):.3f} ({best['label']})"
    text = "better than the best component by more than two standard deviations"
    if spread is None:
        return _goal(text, None, f"{detail}; one seed has no spread")
    return _goal(text, gain > 2 * spread, f"{detail}; sd {spread:.4f}, so {gain:.3f} is the gain")


def _near_specialist(hybrid: RowRecord, components: list[RowRecord], kind: str) -> dict[str, Any]:
    specialist = min(components, key=lambda row: row["loss"][kind])
    ratio = hybrid["loss"][kind] / specialist["loss"][kind]
    detail = (
        f"{hybrid['loss'][kind]:.3f} against {specialist['loss'][kind]:.3f} "
        f"({specialist['label']}): {100 * (ratio - 1):+.1f} %"
    )
    return _goal(f"on {kind} within 2 % of the specialist", ratio <= 1.02, detail)


def _beats(hybrid: RowRecord, other: RowRecord, text: str) -> dict[str, Any]:
    detail = f"{_mean(hybrid):.3f} against {_mean(other):.3f} ({other['label']})"
    return _goal(text, _mean(hybrid) < _mean(other), detail)


def _cross_talk(hybrid: RowRecord, without: RowRecord) -> dict[str, Any]:
    gain, spread = _mean(without) - _mean(hybrid), _spread(hybrid, without)
    detail = f"{_mean(hybrid):.4f} with, {_mean(without):.4f} without: a gain of {gain:+.4f} nats"
    text = "cross-talk between the streams earns more than two standard deviations"
    if spread is None:
        return _goal(text, None, f"{detail}; one seed has no spread")
    return _goal(text, gain > 2 * spread, f"{detail}; sd {spread:.4f}")
