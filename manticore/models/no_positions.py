"""What stands where a model keeps its position table, when there are no positions to add."""

from typing import Any

import torch
from torch import Tensor, nn


class NoPositions(nn.Module):
    """Adds nothing: the model has no table, or its rows were added at the entry already."""

    def forward(self, given: Tensor, *_: Any, **__: Any) -> Tensor:
        """A zero that broadcasts and keeps the dtype of what it is added to."""
        return torch.zeros((), dtype=given.dtype, device=given.device)
