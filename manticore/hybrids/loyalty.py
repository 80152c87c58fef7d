"""How much a component's stream prefers itself over the others."""

import torch
from torch import Tensor, nn


class Loyalty(nn.Module):
    """s_b >= 0, one for each boundary: a constant, or learned."""

    def __init__(self, values: list[float], learn: bool) -> None:
        super().__init__()
        start = torch.tensor(values)
        self.is_infinite = [value == float("inf") for value in values]
        if learn:
            self.value = nn.Parameter(start)
        else:
            self.register_buffer("value", start, persistent=True)
        self.fixed = None if learn else values

    def at_boundaries(self, device: torch.device) -> Tensor:
        """(B + 1,) loyalties, at least 0; an infinite one is 0 here (`streams.read` knows it)."""
        if self.fixed is None:
            return self.value.float().clamp(min=0).nan_to_num(posinf=0.0)
        finite = [0.0 if skip else s for s, skip in zip(self.fixed, self.is_infinite, strict=True)]
        return torch.tensor(finite, device=device)
