"""Where a mixer computes more exactly than it stores: norms, decays, states."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """float32 for bfloat16 and float16; wider floats as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
