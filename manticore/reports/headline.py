"""What the run found, in sentences that read the same whichever way it went."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from manticore.reports.numbers import count_text, loss_text
from manticore.reports.records import Row, measured, sorted_rows

# Rows that the sentences look for by name; dashes and underscores are the same.
HYBRID_ID = "hybrid"
NO_CROSS_TALK_ID = "no-cross-talk"


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The result in words: one sentence, and what it leaves out."""

    sentence: str
    """The comparison with the best component."""
    details: list[str]
    """Ensembles, equal compute, cross-talk, spread: one sentence each."""


def headline(rows: Sequence[Row], committed: Sequence[Row] = ()) -> Headline:
    """Say how the hybrid stands against the rest, better or worse."""
    hybrid = hybrid_row(rows)
    if hybrid is None or not measured(hybrid["loss"]["mean"]):
        return Headline(sentence=_without_hybrid(rows, hybrid), details=[])
    component = best_component(rows, hybrid)
    start = f"The hybrid reaches {loss_text(hybrid['loss']['mean'])} nats per token"
    if component is None:
        return Headline(sentence=f"{start}.", details=_details(rows, hybrid, component, committed))
    name = f"the best fine-tuned component ({component['label']}, {_mean(component)})"
    sentence = f"{start}, {compare(hybrid, component)} {name}."
    return Headline(sentence=sentence, details=_details(rows, hybrid, component, committed))


def hybrid_row(rows: Sequence[Row]) -> Row | None:
    """The row that the report is about: `hybrid`, else the first of that group."""
    hybrids = [row for row in rows if row["group"] == "hybrid"]
    return find_row(hybrids, HYBRID_ID) or next(iter(hybrids), None)


def best_component(rows: Sequence[Row], hybrid: Row) -> Row | None:
    """The best component that had no more tokens than the hybrid."""
    components = [row for row in sorted_rows(rows) if row["group"] == "component"]
    fair = [row for row in components if not _longer(row, hybrid)] or components
    return next((row for row in fair if measured(row["loss"]["mean"])), None)


def find_row(rows: Sequence[Row], name: str) -> Row | None:
    """The row with this id, whether it is written with dashes or underscores."""
    return next((row for row in rows if row["id"].replace("_", "-") == name), None)


def compare(row: Row, other: Row) -> str:
    """How `row` stands to `other`: '0.259 (7.1 %) better than', '… worse than'."""
    difference = other["loss"]["mean"] - row["loss"]["mean"]
    spread = _difference_sd(row, other)
    if spread is not None and abs(difference) <= 2 * spread:
        size = f"{abs(difference):.3f}, spread {spread:.3f}"
        return f"within two standard deviations ({size}) of"
    if round(abs(difference), 3) == 0:
        return "the same to three digits as"
    share = abs(difference) / abs(other["loss"]["mean"])
    size = f"{abs(difference):.3f} ({100 * share:.1f}\u00a0%)"
    return f"{size} {'better' if difference > 0 else 'worse'} than"


def _details(
    rows: Sequence[Row], hybrid: Row, component: Row | None, committed: Sequence[Row]
) -> list[str]:
    details = []
    for group, text in (("ensemble", "the best ensemble"), ("component", "")):
        other = _best_of(rows, group, hybrid)
        if other is not None:
            what = text or f"the best component with more tokens ({count_text(other['tokens'])})"
            label = f"{what} ({other['label']}, {_mean(other)})"
            details.append(f"It is {compare(hybrid, other)} {label}.")
    lowest = sorted_rows(rows)[0]
    if round(lowest["loss"]["mean"], 3) < round(hybrid["loss"]["mean"], 3):
        details.append(f"The lowest loss is not the hybrid's: {lowest['label']}, {_mean(lowest)}.")
    quiet = find_row(rows, NO_CROSS_TALK_ID)
    if quiet is not None and measured(quiet["loss"]["mean"]):
        details.append(_cross_talk(hybrid, quiet))
    if hybrid["seeds"] == 1:
        details.append("This is one seed: differences of a few thousandths mean nothing.")
    return details + _committed(committed, component) + other_budget(rows, committed)


def _best_of(rows: Sequence[Row], group: str, hybrid: Row) -> Row | None:
    """The best ensemble, or the best component that had more tokens than the hybrid."""
    for row in sorted_rows(rows):
        fits = row["group"] == group and measured(row["loss"]["mean"])
        if fits and (group == "ensemble" or _longer(row, hybrid)):
            return row
    return None


def _cross_talk(hybrid: Row, quiet: Row) -> str:
    gain = quiet["loss"]["mean"] - hybrid["loss"]["mean"]
    spread = _difference_sd(hybrid, quiet)
    start = f"Without cross-talk between the streams it reaches {_mean(quiet)}:"
    if spread is None:
        word = "lower" if gain > 0 else "higher"
        verdict = f"with it the loss is {abs(gain):.3f} {word}, in one seed"
        if round(abs(gain), 3) == 0:
            verdict = "the translators earn nothing in this seed"
    elif abs(gain) <= 2 * spread:
        verdict = f"the translators earn nothing measurable ({gain:+.3f}, spread {spread:.3f})"
    else:
        verdict = f"the translators {'earn' if gain > 0 else 'cost'} {abs(gain):.3f}"
    return f"{start} {verdict}."


def other_budget(rows: Sequence[Row], committed: Sequence[Row]) -> list[str]:
    """A sentence where the committed hybrid was trained on more or fewer tokens than this one."""
    ours, theirs = hybrid_row(rows), hybrid_row(committed)
    if not ours or not theirs or not ours["tokens"] or ours["tokens"] == theirs["tokens"]:
        return []
    tokens = [count_text(row["tokens"]) for row in (theirs, ours)]
    return [f"Its hybrid was fine-tuned on {tokens[0]} tokens, this one on {tokens[1]}."]


def _committed(committed: Sequence[Row], component: Row | None) -> list[str]:
    hybrid = hybrid_row(committed)
    if hybrid is None or not measured(hybrid["loss"]["mean"]):
        return []
    start = f"Over the {hybrid['seeds']} seeds of the committed table it is {_mean(hybrid)}"
    other = find_row(committed, component["id"].replace("_", "-")) if component else None
    other = other or best_component(committed, hybrid)
    if other is None:
        return [f"{start}."]
    return [f"{start} against {_mean(other)} for {other['label']}."]


def _without_hybrid(rows: Sequence[Row], hybrid: Row | None) -> str:
    lowest = sorted_rows(rows)[0]
    reason = "The hybrid diverged" if hybrid else "This run has no hybrid"
    if not measured(lowest["loss"]["mean"]):
        return f"{reason}, and no other row was measured."
    return f"{reason}; the lowest loss is {_mean(lowest)} nats per token ({lowest['label']})."


def _mean(row: Row) -> str:
    spread = (row.get("loss_sd") or {}).get("mean")
    return loss_text(row["loss"]["mean"]) + (f" ± {spread:.3f}" if measured(spread) else "")


def _difference_sd(row: Row, other: Row) -> float | None:
    """Standard deviation of the difference of two rows, None unless both have a spread."""
    spreads = [(one.get("loss_sd") or {}).get("mean") for one in (row, other)]
    numbers = [float(spread) for spread in spreads if measured(spread)]
    return math.hypot(*numbers) if len(numbers) == 2 else None


def _longer(row: Row, hybrid: Row) -> bool:
    # A batch more or less is the same budget.
    return (row["tokens"] or 0) > 1.02 * (hybrid["tokens"] or 0)
