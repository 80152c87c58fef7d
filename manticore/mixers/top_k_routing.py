"""Which experts a token uses: the k of the largest scores, with weights that sum to 1.

    w = softmax of the k largest scores, 0 for the others    (arXiv:1701.06538, equations 3 to 5)

mad-lab sets the scores of the others to 0 instead of minus infinity before the softmax, so that
at the start more than half of the weight lies on experts that it calls inactive; that is
`compat="mad-lab"`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Compat = Literal["fixed", "mad-lab"]


def top_k_weights(scores: Tensor, k: int, compat: Compat = "fixed") -> Tensor:
    """Weights of all experts; works under vmap.

    Args:
        scores: (..., experts).
        k: experts that a token uses, 1 to experts.
        compat: see above.

    Returns:
        (..., experts), rows sum to 1; exactly k of them are not 0, unless `compat="mad-lab"`.
    """
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    chosen = torch.zeros_like(wide, dtype=torch.bool).scatter(
        -1, wide.topk(k, dim=-1).indices, True
    )
    off = 0.0 if compat == "mad-lab" else float("-inf")
    return wide.masked_fill(~chosen, off).softmax(dim=-1).to(scores.dtype)


def check_experts(n_experts: int, top_k: int, compat: str) -> None:
    """Raise unless these settings describe a routing."""
    if not 1 <= top_k <= n_experts:
        raise ValueError(f"top_k={top_k} must lie between 1 and n_experts={n_experts}.")
    if compat not in ("fixed", "mad-lab"):
        raise ValueError(f"compat={compat!r} must be 'fixed' or 'mad-lab'.")
