"""Numbers of a training that no recipe may have, named before anything is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def check_least(values: Mapping[str, tuple[int, int]]) -> None:
    """Raise where a value is below its least: key -> (value, least)."""
    for key, (value, least) in values.items():
        if value < least:
            raise ValueError(f"{key}={value}: at least {least} is needed.")


def check_rates(key: str, rates: Sequence[float]) -> None:
    """Raise where a learning rate is not a finite number above 0."""
    for rate in rates:
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"{key} holds {rate:g}: give finite numbers above 0.")
