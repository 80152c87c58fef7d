"""What an examination found: one line for each check, and whether all passed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Status = Literal["pass", "fail", "skip", "error"]
FORWARD = "forward"
"""The only finding about a model that cannot run at all."""
_SIGNS = {"pass": "ok  ", "fail": "FAIL", "skip": "-   ", "error": "FAIL"}
_FROM_GOOD_TO_BAD: tuple[Status, ...] = ("pass", "skip", "fail", "error")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one check."""

    check: str
    """Its name in the table of checks."""
    status: Status
    """`skip`: it says nothing about this model, or our model refuses; `error`: the model raised."""
    error: float | None = None
    """Largest relative difference, where the check measures one."""
    tolerance: float | None = None
    """The largest that passes."""
    detail: str = ""
    """What was wrong, or why it was skipped."""

    @property
    def is_fault(self) -> bool:
        """Whether it speaks against the model."""
        return self.status in ("fail", "error")


@dataclass(frozen=True, kw_only=True)
class Report:
    """All findings about one model."""

    model: str
    """What was examined."""
    findings: tuple[Finding, ...]
    """In the order of the checks."""

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.faults

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that speak against the model."""
        return tuple(finding for finding in self.findings if finding.is_fault)

    @property
    def is_stuck(self) -> bool:
        """Whether the model cannot run at all, so that nothing was checked."""
        return [finding.check for finding in self.findings] == [FORWARD]

    def __getitem__(self, check: str) -> Finding:
        """The finding of one check."""
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(f"{check!r} was not checked. Checked: {[f.check for f in self.findings]}.")

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        findings = [asdict(finding) for finding in self.findings]
        return {"model": self.model, "passed": self.passed, "findings": findings}

    def __str__(self) -> str:
        width = max(len(finding.check) for finding in self.findings)
        lines = [self.model]
        for finding in self.findings:
            measured = "" if finding.error is None else f"{finding.error:9.1e}"
            line = f"  {_SIGNS[finding.status]}  {finding.check:{width}}  {measured:9}"
            lines.append(f"{line}  {finding.detail}".rstrip())
        number = len(self.faults)
        verdict = "passed" if self.passed else f"{number} {'fault' if number == 1 else 'faults'}"
        return "\n".join([*lines, f"  {verdict}"])


def worst_of(reports: Sequence[Report], name: str) -> Report:
    """One report on several configurations of a model: of every check the worst finding.

    A check that one configuration skips counts as absent from all; where one cannot run at all,
    that is the report.
    """
    if any(report.is_stuck for report in reports):
        runs = Finding(check=FORWARD, status="pass")
        found = [report.findings[0] if report.is_stuck else runs for report in reports]
        return Report(model=name, findings=(_worst(found),))
    by_check = zip(*(report.findings for report in reports), strict=True)
    return Report(model=name, findings=tuple(_worst(findings) for findings in by_check))


def _worst(findings: Sequence[Finding]) -> Finding:
    def badness(finding: Finding) -> tuple[int, float]:
        return _FROM_GOOD_TO_BAD.index(finding.status), finding.error or 0.0

    worst = max(findings, key=badness)
    faulty = [str(number) for number, one in enumerate(findings, 1) if one.is_fault]
    if not faulty or len(faulty) == len(findings):
        return worst
    where = f"configuration {' and '.join(faulty)} of {len(findings)}"
    return replace(worst, detail=f"{where}: {worst.detail}")
