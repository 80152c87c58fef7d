"""An independent count of floating-point operations: what torch really runs.

Products and attention are counted by torch's own formulas (a multiply-add is two), Fourier
transforms as 5 n log2 n, and every other operation on floats as one per number that it makes, or
two where it multiplies and adds.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_NO_ARITHMETIC = {
    "_to_copy", "_unsafe_view", "alias", "arange", "as_strided", "cat", "clone", "constant_pad_nd",
    "copy_", "detach", "empty", "empty_like", "expand", "full", "full_like", "gather", "index",
    "index_select", "new_empty", "new_full", "new_zeros", "ones", "ones_like", "permute", "select",
    "select_backward", "slice", "slice_backward", "split", "split_with_sizes", "squeeze", "stack",
    "t", "transpose", "unbind", "unsqueeze", "view", "where", "zeros", "zeros_like", "fill_",
    "masked_fill", "tril", "triu", "flip", "repeat", "topk", "sort", "zero_", "roll",
}  # fmt: skip

_MULTIPLY_ADDS = {"addcmul", "addcmul_"}


class FlopCount(TorchDispatchMode):
    """Counts while it is entered: `products` (with transforms) and `elementwise`."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0
        self.elementwise = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        name = packet.__name__
        if packet in flop_registry:
            self.products += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        elif name == "_scaled_dot_product_flash_attention_for_cpu":
            attention = torch.ops.aten._scaled_dot_product_flash_attention
            self.products += flop_registry[attention](*args[:3], out_val=out)
        elif name.startswith("_fft_"):
            self.products += _transform(args[0], out, name)
        elif name not in _NO_ARITHMETIC:
            self.elementwise += _floats(out) * (2 if name in _MULTIPLY_ADDS else 1)
        return out


def _transform(given: torch.Tensor, out: torch.Tensor, name: str) -> int:
    # A transform of real numbers is half of one of complex numbers of that length.
    signal = out if name == "_fft_c2r" else given
    n = signal.shape[-1]
    whole = 5 * signal.numel() * math.log2(max(n, 2))
    return round(whole if name == "_fft_c2c" else whole / 2)


def _floats(out: Any) -> int:
    made = out if isinstance(out, (tuple, list)) else [out]
    return sum(
        tensor.numel()
        for tensor in made
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    )
