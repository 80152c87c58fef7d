"""Numbers as people read them: losses, counts, FLOPs, bytes, durations.

Every function takes None for "not measured" and answers with a dash, so that a table never has
to ask. A loss that is not finite reads "diverged": hiding it would be a lie.
"""

import math
from collections.abc import Sequence

DASH = "\u2013"  # an en dash
MINUS = "\u2212"
TIMES = "\u00d7"
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def loss_text(value: float | None, digits: int = 3) -> str:
    """A loss in nats (or bits) with a fixed number of digits."""
    if value is None:
        return DASH
    return f"{value:.{digits}f}" if math.isfinite(value) else "diverged"


def spread_text(value: float | None, digits: int = 3) -> str:
    """A standard deviation as it stands behind a mean, or nothing."""
    return "" if value is None or not math.isfinite(value) else f"±{value:.{digits}f}"


def signed_text(value: float | None, digits: int = 3) -> str:
    """A difference with its sign; zero has none."""
    if value is None or not math.isfinite(value):
        return DASH
    rounded = round(value, digits)
    if rounded == 0:
        return f"{0:.{digits}f}"
    return f"{rounded:+.{digits}f}".replace("-", MINUS)


def count_text(value: float | None) -> str:
    """A count: exact below ten thousand, three digits and a suffix above."""
    if value is None:
        return DASH
    if abs(value) < 10_000:
        return f"{value:,.0f}"
    return _with_unit(value, ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")))


def power_text(value: float | None, plain: bool = False) -> str:
    """A large number as a power of ten: 1.20 × 10¹², or 1.20e12 in plain text."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    if plain:
        return f"{mantissa}e{int(exponent)}"
    return f"{mantissa} {TIMES} 10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def bytes_text(value: float | None) -> str:
    """A size in powers of 1024."""
    if value is None:
        return DASH
    if abs(value) < 1024:
        return f"{value:.0f} B"
    return _with_unit(value, ((2**10, "KiB"), (2**20, "MiB"), (2**30, "GiB"), (2**40, "TiB")))


def seconds_text(value: float | None) -> str:
    """A duration: 0.4 s, 52 s, 3 min 20 s, 2 h 05 min."""
    if value is None:
        return DASH
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def length_text(tokens: int) -> str:
    """A sequence length: 1024 is 1k, 32768 is 32k, anything else is written out."""
    return f"{tokens // 1024}k" if tokens and tokens % 1024 == 0 else f"{tokens:,}"


def percent_text(fraction: float | None, digits: int = 0) -> str:
    """A share of one as a percentage."""
    return DASH if fraction is None else f"{100 * fraction:.{digits}f}\u00a0%"


def _with_unit(value: float, units: Sequence[tuple[float, str]]) -> str:
    # 999.5 is where three digits would round up to 1000.
    fitting = [unit for unit in units if abs(value) < 999.5 * unit[0]]
    size, name = fitting[0] if fitting else units[-1]
    return f"{_three_digits(value / size)} {name}"


def _three_digits(value: float) -> str:
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}"
