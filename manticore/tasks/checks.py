"""Checks of task settings; every message says what was given, what is allowed, what to do."""

from __future__ import annotations

from typing import Any


def check_whole(name: str, value: Any, least: int, why: str = "") -> None:
    """Raise unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}={value!r} is not a whole number. Give one from {least} up.")
    if value < least:
        because = f": {why}" if why else ""
        raise ValueError(
            f"{name}={value} is too small{because}. Allowed: {least} and more. Raise {name}."
        )


def check_even(name: str, value: int, why: str) -> None:
    """Raise unless `value` is even."""
    if value % 2:
        raise ValueError(
            f"{name}={value} is odd, but {why}. Choose an even number, "
            f"such as {value - 1} or {value + 1}."
        )


def check_flag(name: str, value: Any) -> None:
    """Raise unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is not a flag. Allowed: True, False.")


def check_share(name: str, value: Any) -> None:
    """Raise unless `value` is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(
            f"{name}={value!r} is not a share. Allowed: 0 up to, but not including, 1."
        )


def check_noise(frac_noise: Any, noise_vocab_size: Any) -> None:
    """Raise unless there are noise tokens where noise is asked for."""
    check_share("frac_noise", frac_noise)
    check_whole("noise_vocab_size", noise_vocab_size, 0)
    if frac_noise > 0 and noise_vocab_size == 0:
        raise ValueError(
            f"frac_noise={frac_noise} contradicts noise_vocab_size=0: noise needs tokens of its "
            "own. Give noise_vocab_size 1 or more, or frac_noise=0."
        )


def check_vocabulary(vocab_size: Any, special: int, noise: int, least: int, what: str) -> None:
    """Raise unless `least` tokens are left beside the special ones and the noise.

    Args:
        special: how many tokens have a meaning of their own.
        what: what the tokens that are left must hold.
    """
    parts = [f"{least} for {what}"]
    parts += [f"{special} special"] if special else []
    parts += [f"{noise} for noise"] if noise else []
    check_whole("vocab_size", vocab_size, least + special + noise, f"it takes {', '.join(parts)}")
