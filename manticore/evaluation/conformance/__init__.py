"""The doctor: does a causal language model compute the same numbers by every road?

`doctor(model)` runs the table of checks (`checks.CHECKS`) and those of gradients and adapters
(`reach`) on any Hugging Face causal language model or hybrid, and returns a `Report`.
"""

from manticore.evaluation.conformance.doctor import check_names, doctor
from manticore.evaluation.conformance.findings import Finding, Report, worst_of

__all__ = ["Finding", "Report", "check_names", "doctor", "worst_of"]
