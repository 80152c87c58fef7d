"""Where a sequence ends when its batch is padded."""

from __future__ import annotations

import torch
from torch import Tensor


def last_real(values: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(batch, size) of (batch, seq, size): each sequence at its last token that is not padding.

    Args:
        attention_mask: (batch, seq), not 0 at tokens, padding on either side; None: no padding.
    """
    if attention_mask is None:
        return values[:, -1]
    positions = torch.arange(values.shape[1], device=values.device)
    last = (attention_mask.bool() * positions).argmax(dim=1)  # (B,)
    return values.gather(1, last.view(-1, 1, 1).expand(-1, 1, values.shape[-1])).squeeze(1)
