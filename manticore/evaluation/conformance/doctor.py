"""Run the checks on a model and write down what they found."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from manticore.evaluation.conformance.causal import check_causal
from manticore.evaluation.conformance.checks import CHECKS
from manticore.evaluation.conformance.findings import FORWARD, Finding, Report
from manticore.evaluation.conformance.probe import NotApplicable, Probe
from manticore.evaluation.conformance.reach import Missed, bypassed_adapters, unreached_parameters
from manticore.models.family import RefusedError
from manticore.training.flags import modes_kept

_SHORTEST = 14
_REACH: dict[str, Callable[[Probe], Missed]] = {
    "gradient-reach": unreached_parameters,
    "adapter-reach": bypassed_adapters,
}


def check_names() -> list[str]:
    """All checks, in the order in which they are made."""
    return [*CHECKS, *_REACH]


def doctor(
    model: Any,
    checks: Sequence[str] | None = None,
    *,
    seq_len: int = 20,
    seed: int = 0,
    name: str | None = None,
    on_check: Callable[[str], None] | None = None,
) -> Report:
    """Examine a causal language model; it comes back as it was.

    Args:
        model: any Hugging Face causal language model, hybrid or PEFT model; float32 is best, since
            errors are judged by what float32 allows.
        checks: names from `check_names()`; default all.
        seq_len: tokens of the longest row, at least 14.
        seed: draws the tokens.
        name: what the report calls the model; default its class and family.
        on_check: called with each check's name before it runs.

    Returns:
        One finding for each check, or a single one if the model cannot run at all. A check that
        the model has no use for, or that one of our models refuses, is skipped and says why.
    """
    chosen = chosen_checks(checks)
    check_causal(model.config, f"The model {name or type(model).__name__}")
    if seq_len < _SHORTEST:
        raise ValueError(f"seq_len={seq_len} is too short for the checks. Use {_SHORTEST} or more.")
    if name is None:
        name = f"{type(model).__name__} ({model.config.model_type})"
    probe = Probe(model, seq_len=seq_len, seed=seed)
    findings = []
    with _evaluating(model):
        stuck = _forward(probe)
        if stuck.is_fault:
            return Report(model=name, findings=(stuck,))
        for check in chosen:
            if on_check is not None:
                on_check(check)
            findings.append(_examine(probe, check))
    return Report(model=name, findings=tuple(findings))


def chosen_checks(checks: Sequence[str] | None) -> list[str]:
    """The checks of these names in the order of the table; None: all. Raises for unknown ones."""
    known = check_names()
    for check in checks or ():
        if check not in known:
            close = difflib.get_close_matches(check, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"Unknown check {check!r}.{hint} Known: {', '.join(known)}.")
    return known if checks is None else [check for check in known if check in set(checks)]


def _forward(probe: Probe) -> Finding:
    """Whether the model runs on a row at all; if not, every check would say the same."""

    def run(probe: Probe) -> Finding:
        probe.truth(0)
        return Finding(check=FORWARD, status="pass")

    finding = _found(run, probe, FORWARD)
    if not finding.is_fault:
        return finding
    return replace(finding, detail=f"it cannot run, so nothing was checked: {finding.detail}")


def _examine(probe: Probe, name: str) -> Finding:
    look = _reach if name in _REACH else _compare
    return _found(lambda probe: look(probe, name), probe, name)


def _found(look: Callable[[Probe], Finding], probe: Probe, name: str) -> Finding:
    try:
        return look(probe)
    except NotApplicable as reason:
        return Finding(check=name, status="skip", detail=str(reason))
    except RefusedError as refusal:
        first_sentence = str(refusal).partition(". ")[0]
        return Finding(check=name, status="skip", detail=f"refused: {first_sentence}")
    # Whatever a stranger's model raises where it should work is a finding, not our crash.
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), "")
        return Finding(
            check=name, status="error", detail=f"{type(error).__name__}: {first_line[:160]}"
        )


def _compare(probe: Probe, name: str) -> Finding:
    check = CHECKS[name]
    error = check.measure(probe)
    passes = error <= check.tolerance
    return Finding(
        check=name,
        status="pass" if passes else "fail",
        error=error,
        tolerance=check.tolerance,
        detail="" if passes else f"not so: {check.says}",
    )


def _reach(probe: Probe, name: str) -> Finding:
    found = _REACH[name](probe)
    missed = found.names
    if not missed:
        return Finding(check=name, status="pass", detail=found.left_out)
    shown = ", ".join(missed[:4]) + (f" and {len(missed) - 4} more" if len(missed) > 4 else "")
    return Finding(check=name, status="fail", detail=f"no gradient: {shown}")


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode, and the mode it was in again afterwards."""
    with modes_kept(model), torch.random.fork_rng():
        model.eval()
        yield
