"""Rotary positions: queries and keys turned by angles that grow with the position.

A pair of channels (i, i + R/2) of the R rotated ones is turned by position * base^(-2i/R), so a
product of a query and a key depends on their distance only (Su et al., 2021, arXiv:2104.09864,
equation 34; the pairing is GPT-NeoX's, as in Llama and Pythia).
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0, fraction: float = 1.0) -> Tensor:
    """Turn the first `fraction` of the channels, and leave the others.

    Args:
        x: (batch, heads, seq, channels).
        positions: (batch or 1, seq) int64.
        base: the angles' base; a larger one turns the last channels slower.
        fraction: share of the channels; the number of rotated ones must be even.

    Returns:
        As x. Angles are float32 or better, since bfloat16 has no 257.
    """
    rotated = rotated_channels(x.shape[-1], fraction)
    if rotated == 0:
        return x
    cosine, sine = _angles(positions, rotated, base, torch.promote_types(x.dtype, torch.float32))
    first, second = x[..., :rotated].chunk(2, dim=-1)  # each (B, H, T, R/2)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    parts = [part.to(x.dtype) for part in turned]
    return torch.cat([*parts, x[..., rotated:]], dim=-1)


def rotated_channels(channels: int, fraction: float) -> int:
    """How many of the channels are turned; rounded down as in transformers."""
    # But 88 * (30 / 88) is 29.999999999999996, and meant are 30.
    return int(channels * fraction + 1e-9)


def check_rotary(channels: int, fraction: float, base: float) -> None:
    """Refuse settings that leave a channel without its partner."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"rotary_fraction={fraction} must lie between 0 (none) and 1 (all).")
    if base <= 1:
        raise ValueError(f"rotary_base={base} must be greater than 1, such as 10000.")
    rotated = rotated_channels(channels, fraction)
    if rotated % 2:
        raise ValueError(
            f"rotary_fraction={fraction} of {channels} channels per head rotates {rotated}, "
            f"which is odd. Choose fewer heads, or rotary_fraction={(rotated - 1) / channels:g}."
        )


def _angles(
    positions: Tensor, rotated: int, base: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine (batch or 1, 1, seq, rotated / 2)."""
    exponents = torch.arange(0, rotated, 2, device=positions.device).to(dtype) / rotated
    angles = positions[:, None, :, None].to(dtype) / base**exponents
    return angles.cos(), angles.sin()
