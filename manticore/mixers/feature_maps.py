"""Feature maps of linear attention: what takes the place of the exponential of a product.

    attention weighs by exp(q k / sqrt(K)); linear attention by phi(q) phi(k)

A positive phi keeps every weight positive, so that their sum can be divided by. Positive here:
`elu` (elu(x) + 1, arXiv:2006.16236), `relu`, `softmax` (over a head's channels), `hedgehog`
(learned, softmax of W x and of -W x, arXiv:2402.04347) and, for the product, `taylor` (the
exponential to second order, arXiv:2402.18668). `quadratic` is mad-lab's (W_1 x + b_1)(W_2 x + b_2),
whose sign is free.

    K key size per head, F features per head
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manticore.mixers.fresh_weights import uniform_linear
from manticore.mixers.precision import widen

MapName = Literal["elu", "relu", "softmax", "hedgehog", "taylor", "quadratic"]
MAPS = ("elu", "relu", "softmax", "hedgehog", "taylor", "quadratic")


class FeatureMap(nn.Module):
    """Map (..., K) to features (..., F), float32 or better; a learned map serves all heads."""

    def __init__(self, name: MapName, n_keys: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.name = name
        # An identity, so that a converted model starts from the queries and keys it has.
        self.weight = nn.Parameter(torch.eye(n_keys)) if name == "hedgehog" else None
        self.first = self.second = None
        if name == "quadratic":
            self.first = _biased(n_keys, generator)
            self.second = _biased(n_keys, generator)

    def forward(self, x: Tensor) -> Tensor:
        if self.first is not None and self.second is not None:
            return widen(self.first(x)) * widen(self.second(x))
        if self.weight is not None:
            mapped = widen(x @ self.weight.to(x.dtype).mT)
            return torch.cat([mapped, -mapped], dim=-1).softmax(dim=-1)
        wide = widen(x)
        if self.name == "elu":
            return F.elu(wide) + 1
        if self.name == "relu":
            return F.relu(wide)
        return wide.softmax(dim=-1) if self.name == "softmax" else _taylor(wide)


def num_features(name: MapName, n_keys: int) -> int:
    """Features of one head."""
    return {"hedgehog": 2 * n_keys, "taylor": 1 + n_keys + n_keys**2}.get(name, n_keys)


def num_map_parameters(name: MapName, n_keys: int) -> int:
    """Trainable numbers of one `FeatureMap`."""
    return {"hedgehog": n_keys**2, "quadratic": 2 * (n_keys**2 + n_keys)}.get(name, 0)


def map_flops(name: MapName, n_keys: int) -> int:
    """Operations that one head's features take: products only."""
    return {"hedgehog": 2 * n_keys**2, "quadratic": 4 * n_keys**2 + n_keys}.get(name, 0)


def _taylor(x: Tensor) -> Tensor:
    """Features whose product is 1 + s + s^2 / 2 with s = q k / sqrt(K): at least 1/2."""
    n_keys = x.shape[-1]
    square = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2) / (2 * n_keys) ** 0.5
    return torch.cat([torch.ones_like(x[..., :1]), x / n_keys**0.25, square], dim=-1)


def _biased(n_keys: int, generator: torch.Generator | None) -> nn.Linear:
    linear = uniform_linear(n_keys, n_keys, generator, n_keys**-0.5)
    linear.bias = nn.Parameter(torch.zeros(n_keys))
    return linear
