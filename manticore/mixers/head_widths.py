"""Widths that settings give as multiples of d_model, shared evenly by the heads."""

from __future__ import annotations

import math


def check_heads(d_model: int, n_heads: int, **factors: float) -> None:
    """Refuse heads that cannot share d_model times each of these factors.

    Args:
        factors: by the names of their settings, such as expand_key=0.75.
    """
    for name, factor in factors.items():
        width = d_model * factor
        # 44 * (30 / 44) is 29.999999999999996, and meant are 30.
        is_whole = math.isclose(width, round(width), rel_tol=1e-9)
        if n_heads < 1 or round(width) < 1 or not is_whole or round(width) % n_heads:
            raise ValueError(
                f"n_heads={n_heads} does not divide {width:g}, which is d_model={d_model} times "
                f"{name}={factor:g}. Choose n_heads >= 1 that does, or another {name}."
            )
