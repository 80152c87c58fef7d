"""A convolution as long as the sequence, by Fourier transforms (arXiv:2302.10866, section 3.3).

y_t = sum_{s <= t} h_{t-s} u_s                           each channel by itself

Real transforms of the shortest length that leaves room for the tail, along rows that lie together
in memory. The gradients of both factors are convolutions as well and share the transform of the
incoming gradient: four transforms of the sequences for a training step, where autograd through
torch's own makes five, one of them complex.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manticore.mixers.precision import widen


def long_convolution(u: Tensor, filters: Tensor, num_outputs: int | None = None) -> Tensor:
    """Convolve along time in n log n operations; differentiable once, works under vmap.

    Args:
        u: (batch, seq, channels).
        filters: (channels, taps), taps at least seq; the first weighs the present.
        num_outputs: only the last so many positions; None: all.

    Returns:
        (batch, num_outputs, channels), float32 or wider. Position t sees positions up to t.
    """
    seq_len = u.shape[1]
    filters = widen(filters[:, :seq_len])
    if num_outputs == 1:
        # One output is one sum: cheaper than any transform.
        return (widen(u) * filters.flip(1).t()).sum(dim=1, keepdim=True)
    start = 0 if num_outputs is None else seq_len - num_outputs
    y: Tensor = _Convolution.apply(widen(u), filters, start)[0]
    return y


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


class _Convolution(torch.autograd.Function):
    """Also gives both spectra, (batch, channels, frequencies) and (channels, frequencies)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, filters: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        seq_len = u.shape[1]
        # Room for the tail of the linear convolution, so that it does not wrap round.
        size = fast_length(2 * seq_len - 1)
        spectrum, response = _transform(u, size), torch.fft.rfft(filters, n=size)
        y = _back(spectrum * response, size)[:, start:seq_len]
        return y.contiguous(), spectrum, response

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        u, filters, ctx.start = inputs
        ctx.sizes = (u.shape[1], filters.shape[1])
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (*_Gradients.apply(grads[0], *ctx.saved_tensors, ctx.start, *ctx.sizes), None)


class _Gradients(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor, spectrum: Tensor, response: Tensor, start: int, seq_len: int, taps: int
    ) -> tuple[Tensor, Tensor]:
        size = fast_length(2 * seq_len - 1)
        incoming = _transform(F.pad(grad, (0, 0, start, 0)), size)
        grad_u = _back(incoming * response.conj(), size)[:, :seq_len].contiguous()
        product = (incoming * spectrum.conj()).sum(dim=0)
        return grad_u, torch.fft.irfft(product, n=size)[:, :taps].contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            "long_convolution has no second derivative. Use long_convolution_naive for one."
        )


def _transform(u: Tensor, size: int) -> Tensor:
    """(batch, seq, channels) to (batch, channels, frequencies)."""
    return torch.fft.rfft(u.transpose(1, 2).contiguous(), n=size)


def _back(spectrum: Tensor, size: int) -> Tensor:
    """(batch, channels, frequencies) to (batch, size, channels)."""
    return torch.fft.irfft(spectrum, n=size).transpose(1, 2)
