"""Numbers of a training that no recipe may have, named before anything is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def check_least(values: Mapping[str, tuple[int | None, int]]) -> None:
    """Raise where a value is below its least: key -> (value, least); None is not given."""
    for key, (value, least) in values.items():
        if value is not None and value < least:
            raise ValueError(f"{key}={value}: at least {least} is needed.")


def check_within(values: Mapping[str, tuple[float, float, float]]) -> None:
    """Raise where a number is not finite or not in its range: key -> (value, least, most)."""
    for key, (value, least, most) in values.items():
        if not (math.isfinite(value) and least <= value <= most):
            allowed = f"from {least:g} to {most:g}" if most < math.inf else f"of {least:g} or more"
            raise ValueError(f"{key}={value:g}: give a number {allowed}.")


def check_rates(key: str, rates: Sequence[float]) -> None:
    """Raise where a learning rate is not a finite number above 0."""
    for rate in rates:
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"{key} holds {rate:g}: give finite numbers above 0.")
