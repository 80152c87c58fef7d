"""The short depthwise causal convolution before Mamba's scan, as shifted multiply-adds.

    y_t = bias + sum_k w_k x_{t - K + 1 + k}        K taps, each channel by itself

With channels last and K = 4 this is four passes over contiguous rows. `F.conv1d` with one group
per channel gives the same numbers and takes several times longer on a CPU, most of it backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def causal_conv(padded: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve along time, channel by channel; works under vmap and to any derivative.

    Args:
        padded: (batch, K - 1 + seq, channels): what came before (zeros at the start), then x.
        weight: (channels, K), the last tap on the present.
        bias: (channels), or None.

    Returns:
        (batch, seq, channels). Position t sees positions t - K + 1 to t.
    """
    taps = weight.t().contiguous()
    # Without gradients the autograd function is only its price, most of a decoded token's; but it
    # is what knows how to map over stacked weights.
    is_mapped = torch._C._functorch.is_functorch_wrapped_tensor(taps)
    plain = not torch.is_grad_enabled() and not is_mapped
    convolve = _ShiftAndAdd.forward if plain else _ShiftAndAdd.apply
    y: Tensor = convolve(padded, taps)
    return y if bias is None else y + bias


class _ShiftAndAdd(torch.autograd.Function):
    @staticmethod
    def forward(padded: Tensor, taps: Tensor) -> Tensor:
        n_taps = taps.shape[0]
        seq_len = padded.shape[1] - n_taps + 1
        y = padded[:, :seq_len] * taps[0]
        for k in range(1, n_taps):
            y.addcmul_(padded[:, k : k + seq_len], taps[k])
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        padded, taps = ctx.saved_tensors
        grad_padded = grad_taps = None
        n_taps, seq_len = taps.shape[0], grad.shape[1]
        if ctx.needs_input_grad[0]:
            outside = grad.new_zeros(grad.shape[0], n_taps - 1, grad.shape[2])
            around = torch.cat([outside, grad, outside], dim=1)
            grad_padded = _ShiftAndAdd.apply(around, taps.flip(0))
        if ctx.needs_input_grad[1]:
            shifted = (padded[:, k : k + seq_len] for k in range(n_taps))
            grad_taps = torch.stack([(grad * x).sum((0, 1)) for x in shifted])
        return grad_padded, grad_taps

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], padded: Tensor, taps: Tensor) -> Any:
        # Channels do not see each other, so a mapped dimension is more channels.
        size = info.batch_size
        y = _ShiftAndAdd.apply(
            _more_channels(padded, in_dims[0], size), _more_channels(taps, in_dims[1], size)
        )
        return y.unflatten(-1, (size, y.shape[-1] // size)), y.dim() - 1


def _more_channels(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    if dim is None:
        tensor = tensor.unsqueeze(-2).expand(*tensor.shape[:-1], size, tensor.shape[-1])
    else:
        tensor = tensor.movedim(dim, -2)
    return tensor.flatten(-2)
