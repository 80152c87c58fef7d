"""The short causal convolution before a scan as a module: a few taps for each channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manticore.mixers.causal_conv import causal_conv
from manticore.mixers.token_shift import last_real_tokens


class ShortConv(nn.Module):
    """Filter each channel over its last `size` tokens; its state is the `size` - 1 before now."""

    def __init__(self, channels: int, size: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, size))
        nn.init.uniform_(self.weight, -(size**-0.5), size**-0.5, generator=generator)

    def forward(
        self, x: Tensor, before: Tensor | None, padding_mask: Tensor | None, wants_state: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Filter a piece.

        Args:
            x: (batch, seq, channels), zero at padding.
            before: (batch, size - 1, channels), the state before; None: zeros.
            padding_mask: (batch, seq) bool, True where a token is real, or None.
            wants_state: whether to return the state after the piece, else None.

        Returns:
            y: (batch, seq, channels), without an activation, and the state.
        """
        size = self.weight.shape[1]
        if before is None:
            padded = F.pad(x, (0, 0, size - 1, 0))
        else:
            padded = torch.cat([before.to(x.dtype), x], dim=1)
        y = causal_conv(padded, self.weight)
        tail = last_real_tokens(x, before, size - 1, padding_mask) if wants_state else None
        return y, tail
