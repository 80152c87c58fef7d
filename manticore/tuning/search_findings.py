"""What a search over adapter shapes found: fronts, the winner for a recipe, honest sentences.

All of it follows from the records; nothing here trains.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from manticore.config.adapter_recipe import HIGHER_IS_BETTER
from manticore.config.strict_yaml import format_yaml
from manticore.evaluation.mad.pareto import pareto_front
from manticore.tuning.experiment import badness

Row = Mapping[str, Any]
COSTS = ("parameters", "memory_bytes", "step_seconds")
"""What a method costs: keys of a row."""
EQUAL = 0.05
"""Numbers of parameters that differ by no more than this share are called equal."""


def front_of(rows: Sequence[Row], metric: str) -> dict[str, list[str]]:
    """For each cost, the rows that nothing beats in the measure and in that cost; full is none.

    One adapter alone has no front.
    """
    adapters = [row for row in rows if row["method"] != "full"]
    if len(adapters) < 2:
        return {}
    scores = {row["id"]: -badness(row["mean"], metric) for row in adapters}
    return {
        key: pareto_front(scores, {row["id"]: [float(row[key])] for row in adapters})
        for key in COSTS
        if all(row.get(key) is not None for row in adapters)
    }


def winner(rows: Sequence[Row], finalists: Sequence[str], by: str) -> dict[str, Any]:
    """The finalist that is best by validation, ready to be used elsewhere.

    Returns:
        Its row's id and settings, `recipe` (a section `methods:`) and `config` (Python).
    """
    found = [row for row in rows if row["id"] in finalists]
    best = min(found, key=lambda row: min(badness({by: v}, by) for v in row["tried"].values()))
    method = {
        "id": best["id"].removeprefix("search-"),
        "label": best["label"],
        "method": "more",
        "settings": dict(best["settings"]),
        "targets": list(best["targets"]),
        "lr": best["lr"],
    }
    given = {**best["settings"], "target_modules": list(best["targets"])}
    # Whole numbers, texts, lists and mappings of these are the same in JSON and in Python.
    arguments = "".join(f"    {name}={json.dumps(value)},\n" for name, value in given.items())
    return {
        "id": best["id"],
        "parameters": best["parameters"],
        "settings": method["settings"],
        "targets": method["targets"],
        "lr": best["lr"],
        "recipe": format_yaml({"methods": [method]}),
        "config": f"MoReConfig(\n{arguments})\n",
    }


def look_notes(
    proposed: str,
    is_kept: bool,
    look: Mapping[str, float],
    rung: Mapping[str, Any] | None,
    by: str,
) -> list[str]:
    """What the one look proposed, and how well it foretells training: pairs ordered alike.

    Args:
        proposed: title of the one-shot choice.
        is_kept: whether it is among the finalists.
        look: candidate -> share of the change that it holds.
        rung: the first one, with `scores`.
    """
    fate = "is among the finalists" if is_kept else "did not survive the rungs"
    said = [f"The look proposes {proposed}, which {fate}."]
    if rung is None or len(rung["scores"]) < 2:
        return said
    scores = {name: badness({by: value}, by) for name, value in rung["scores"].items()}
    pairs = list(combinations(scores, 2))
    alike = sum((look[a] - look[b]) * (scores[b] - scores[a]) > 0 for a, b in pairs)
    return [
        *said,
        f"The look and {rung['steps']} steps of training order {alike} of {len(pairs)} pairs of "
        "shapes alike.",
    ]


def notes(rows: Sequence[Row], metric: str) -> list[str]:
    """MoRe against LoRA at as many parameters, in sentences that follow from the rows."""
    loras = [row for row in rows if row["method"] == "lora"]
    mores = [row for row in rows if row["method"] == "more"]
    pairs = [(ours, lora) for lora in loras for ours in mores if _is_equal(ours, lora)]
    said = [_against(ours, lora, metric) for ours, lora in pairs]
    if pairs:
        found = [_verdict(ours, lora, metric) for ours, lora in pairs]
        better, level, worse = (found.count(word) for word in _VERDICTS)
        said.append(
            f"At equal parameters MoRe is better than LoRA in {better} of {len(pairs)} "
            f"comparisons, level in {level}, worse in {worse}."
        )
    elif loras and mores:
        said.append("No shape has as many parameters as a LoRA row, so none is compared.")
    return said + [_one_block(row) for row in mores if _is_one_block(row)]


_VERDICTS = ("better than", "level with", "worse than")


def _is_equal(ours: Row, lora: Row) -> bool:
    return abs(ours["parameters"] - lora["parameters"]) <= EQUAL * lora["parameters"]


def _gain(ours: Row, lora: Row, metric: str) -> tuple[float, float | None]:
    """By how much ours is better, and the spread of that; None with one seed."""
    sign = 1.0 if metric in HIGHER_IS_BETTER else -1.0
    gain = sign * (ours["mean"][metric] - lora["mean"][metric])
    spreads = [ours["sd"][metric], lora["sd"][metric]]
    if None in spreads:
        return gain, None
    return gain, math.hypot(*(float(value) for value in spreads))


def _verdict(ours: Row, lora: Row, metric: str) -> str:
    gain, spread = _gain(ours, lora, metric)
    slack = spread or 0.0
    return _VERDICTS[0 if gain > slack else 2 if gain < -slack else 1]


def _against(ours: Row, lora: Row, metric: str) -> str:
    spread = _gain(ours, lora, metric)[1]
    share = 100 * ours["parameters"] / lora["parameters"]
    known = (
        "one seed, so this may be chance"
        if spread is None
        else f"spread of the difference {spread:.4f}"
    )
    return (
        f"{ours['label']} ({share:.0f} % of the parameters) is {_verdict(ours, lora, metric)} "
        f"{lora['label']}: {metric} {ours['mean'][metric]:.4f} against "
        f"{lora['mean'][metric]:.4f}, {known}."
    )


def _is_one_block(row: Row) -> bool:
    settings = row.get("settings") or {}
    counts = [settings.get("nblocks"), *settings.get("nblocks_pattern", {}).values()]
    return set(counts) == {1}


def _one_block(row: Row) -> str:
    return (
        f"{row['label']} has one block everywhere, which is LoRA with alpha = r: PEFT's own LoRA "
        "does as well."
    )
