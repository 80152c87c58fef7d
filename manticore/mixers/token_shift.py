"""The token before each one, and what of a piece the next piece still sees (RWKV, short filters).

RWKV calls it token shift: every position reads a blend of itself and its predecessor. It is a
convolution with two taps, and its state is one token. Before the first token there are zeros.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def token_before(x: Tensor, last: Tensor | None) -> Tensor:
    """Shift (batch, seq, width) by one step; `last` (batch, 1, width) comes first, None: zeros."""
    if last is None:
        return F.pad(x, (0, 0, 1, -1))
    return torch.cat([last.to(x.dtype), x[:, :-1]], dim=1)


def zero_padding(x: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Zero what is padding in (batch, seq, ...), so that it looks like the time before a start."""
    if padding_mask is None:
        return x
    real = padding_mask.reshape(*padding_mask.shape, *(1,) * (x.dim() - 2))
    return torch.where(real, x, torch.zeros_like(x))


def last_real_tokens(
    x: Tensor, before: Tensor | None, count: int, padding_mask: Tensor | None
) -> Tensor:
    """The `count` positions up to each row's last real one, as the state after a piece.

    Args:
        x: (batch, seq, width), zero at padding.
        before: (batch, count, width), what `last_real_tokens` gave for the piece before; None:
            zeros. A row that is all padding keeps it.
        count: positions to keep, 0 or more.
        padding_mask: (batch, seq) bool, True where a token is real, or None.

    Returns:
        (batch, count, width), with memory of its own.
    """
    if before is None:
        before = x.new_zeros(x.shape[0], count, x.shape[2])
    seen = torch.cat([before.to(x.dtype), x], dim=1)
    if padding_mask is None:
        return seen[:, seen.shape[1] - count :].clone()
    ordinal = torch.arange(1, x.shape[1] + 1, device=x.device)
    end = (ordinal * padding_mask).amax(dim=1)  # (B), one past the last real position, 0 if none
    index = end.unsqueeze(1) + torch.arange(count, device=x.device)
    return seen.gather(1, index.unsqueeze(2).expand(-1, -1, x.shape[2]))
