"""A convolution as long as the sequence, by Fourier transforms (arXiv:2302.10866, section 3.3).

y_t = sum_{s <= t} h_{t-s} u_s                           each channel by itself
"""

from __future__ import annotations

import torch
from torch import Tensor

from manticore.mixers.precision import widen


def long_convolution(u: Tensor, filters: Tensor, num_outputs: int | None = None) -> Tensor:
    """Convolve along time in n log n operations; works under vmap, to any derivative.

    Args:
        u: (batch, seq, channels).
        filters: (channels, taps), taps at least seq; the first weighs the present.
        num_outputs: only the last so many positions; None: all.

    Returns:
        (batch, num_outputs, channels), float32 or wider. Position t sees positions up to t.
    """
    seq_len = u.shape[1]
    # Room for the tail of the linear convolution, so that it does not wrap round.
    size = fast_length(2 * seq_len - 1)
    spectrum = torch.fft.rfft(widen(u), n=size, dim=1)
    response = torch.fft.rfft(widen(filters[:, :seq_len]), n=size, dim=1).t()  # (freq, channels)
    y = torch.fft.irfft(spectrum * response, n=size, dim=1)
    start = 0 if num_outputs is None else seq_len - num_outputs
    return y[:, start:seq_len]


def long_convolution_naive(u: Tensor, filters: Tensor) -> Tensor:
    """The same sum, one position after the other."""
    seq_len, outputs = u.shape[1], []
    for t in range(seq_len):
        taps = filters[:, : t + 1].flip(1).t()  # (t + 1, channels)
        outputs.append((widen(u[:, : t + 1]) * widen(taps)).sum(dim=1))
    return torch.stack(outputs, dim=1)


def fast_length(size: int) -> int:
    """The smallest length from `size` on that is 1, 3 or 5 times a power of two."""
    powers = (1 << max(0, (-(-size // odd) - 1).bit_length()) for odd in (1, 3, 5))
    return min(odd * power for odd, power in zip((1, 3, 5), powers, strict=True))
