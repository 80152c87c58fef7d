"""What comes into a forward pass of the hybrid."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from manticore.hybrids.cache import ManticoreCache
from manticore.models import token_step


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What every block of one forward pass needs beside its hidden states."""

    input_ids: Tensor | None  # (batch, seq)
    inputs_embeds: Tensor | None  # (batch, seq, sum of widths)
    attention_mask: Tensor | None  # (batch, past + seq)
    position_ids: Tensor  # (batch, seq)
    cache: ManticoreCache | None
    is_plain_token: bool = False
    """One new token for each sequence, no padding, no gradients: see `token_step`."""
    rotary: dict[int, token_step.Rotary | None] = field(default_factory=dict)
    """Rotary tables of the components that have been asked for one."""


def count_positions(
    attention_mask: Tensor | None, num_new: int, seen: int, device: torch.device
) -> Tensor:
    """Positions of the new tokens, padding on either side not counted: (batch or 1, seq)."""
    if attention_mask is None:
        return torch.arange(seen, seen + num_new, device=device).unsqueeze(0)
    positions = attention_mask.long().cumsum(dim=-1) - 1
    return positions.clamp(min=0)[:, -num_new:]
