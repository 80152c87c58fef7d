"""The mixture: how much of each component every block uses, as rows of the simplex."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manticore.hybrids.remembered import Remembered

# Rows may come from a file or from arithmetic in float32: this much is rounding, not a mistake.
ROW_SUM_TOLERANCE = 1e-4


class Mixture(nn.Module):
    """Mixture weights of all blocks, of the embeddings and of the heads, stored as log weights.

    A log weight of minus infinity is an exact zero: softmax keeps it at zero, its gradient is
    zero, and the branch is skipped. Rows are normalised when they are read, so an optimizer may
    move the parameters freely.

    Legend: B blocks, K components.
    """

    def __init__(
        self, num_blocks: int, num_components: int, own_embed: bool = False, own_head: bool = False
    ) -> None:
        super().__init__()
        uniform = -math.log(num_components)
        self.blocks = nn.Parameter(torch.full((num_blocks, num_components), uniform))  # (B, K)
        self.embed: nn.Parameter | None = None
        self.head: nn.Parameter | None = None
        if own_embed:
            self.embed = nn.Parameter(torch.full((num_components,), uniform))  # (K,)
        if own_head:
            self.head = nn.Parameter(torch.full((num_components,), uniform))  # (K,)
        self._seen: dict[str, Remembered[list[list[int]]]] = defaultdict(Remembered)

    @property
    def weights(self) -> Tensor:
        """Weights of the blocks: (num_blocks, K), rows sum to 1."""
        return self.blocks.float().softmax(dim=-1)

    def log_row(self, block: int) -> Tensor:
        """Normalised log weights of one block: (K,)."""
        return self.blocks[block].float().log_softmax(dim=-1)

    def active(self, block: int) -> list[int]:
        """Components whose weight in this block is not exactly zero."""
        return self._active("blocks", self.blocks)[block]

    def log_embed_row(self) -> Tensor:
        """Normalised log weights of the embeddings: (K,); block 1's unless set on its own."""
        return self.log_row(0) if self.embed is None else self.embed.float().log_softmax(dim=-1)

    def log_boundary_rows(self) -> Tensor:
        """Normalised log weights of what lies before each boundary: (num_blocks + 1, K).

        Before boundary 0 lie the embeddings, before boundary b block b.
        """
        before = self.blocks[:1] if self.embed is None else self.embed.unsqueeze(0)
        return torch.cat([before, self.blocks]).float().log_softmax(dim=-1)

    def row_parameters(self) -> list[Tensor]:
        """The log weights that `log_boundary_rows` reads."""
        return [self.blocks] if self.embed is None else [self.embed, self.blocks]

    @property
    def is_path(self) -> bool:
        """Whether embeddings and every block use one component each."""
        blocks = self._active("blocks", self.blocks)
        return all(len(active) == 1 for active in [self.active_embed(), *blocks])

    def active_embed(self) -> list[int]:
        """Components whose embeddings have a weight that is not exactly zero."""
        return self.active(0) if self.embed is None else self._active("embed", self.embed)[0]

    def log_head_row(self, tied_block: int) -> Tensor:
        """Normalised log weights of the heads: (K,); `tied_block`'s unless set on their own."""
        return self.log_row(tied_block) if self.head is None else self.head.float().log_softmax(-1)

    def active_head(self, tied_block: int) -> list[int]:
        """Components whose head has a weight that is not exactly zero."""
        return self.active(tied_block) if self.head is None else self._active("head", self.head)[0]

    @torch.no_grad()
    def set(self, blocks: Tensor, embed: Tensor | None = None, head: Tensor | None = None) -> None:
        """Set the rows from weights (not logs); `None` ties embeddings or heads to the blocks."""
        # All rows are checked before any is written.
        blocks = checked_rows(blocks, tuple(self.blocks.shape), "mixture")
        width = (self.blocks.shape[1],)
        embed = None if embed is None else checked_rows(embed, width, "embed")
        head = None if head is None else checked_rows(head, width, "head")
        self.blocks.copy_(blocks.log())
        self.embed = self._own_row(self.embed, embed)
        self.head = self._own_row(self.head, head)

    def as_lists(self) -> dict[str, Any]:
        """Weights as numbers: mixture (num_blocks, K), embed and head (K,) or None when tied."""
        return {
            "mixture": _rounded(self.weights),
            "embed": None if self.embed is None else _rounded(self.embed.float().softmax(-1)),
            "head": None if self.head is None else _rounded(self.head.float().softmax(-1)),
        }

    def _own_row(self, old: nn.Parameter | None, row: Tensor | None) -> nn.Parameter | None:
        if row is None:
            return None
        if old is None:
            return nn.Parameter(row.log().to(self.blocks), requires_grad=self.blocks.requires_grad)
        old.copy_(row.log())
        return old

    def _active(self, name: str, parameter: Tensor) -> list[list[int]]:
        # A GPU is read once for each change of the tensor.
        return self._seen[name].get([parameter], lambda: _nonzero(parameter))

    def extra_repr(self) -> str:
        return f"num_blocks={self.blocks.shape[0]}, num_components={self.blocks.shape[1]}"


def _nonzero(log_rows: Tensor) -> list[list[int]]:
    """Components with a finite log weight, for each row."""
    finite = ~torch.isneginf(log_rows.detach().reshape(-1, log_rows.shape[-1]))
    return [[k for k, on in enumerate(row) if on] for row in finite.tolist()]


def _rounded(weights: Tensor) -> list:
    return torch.round(weights.detach().double(), decimals=6).tolist()


def checked_rows(rows: Tensor | Sequence, shape: tuple[int, ...], name: str) -> Tensor:
    """Return `rows` as float32 on the simplex, or raise a ValueError that says what is wrong."""
    rows = torch.as_tensor(rows, dtype=torch.float32)
    if tuple(rows.shape) != shape:
        raise ValueError(
            f"{name} has shape {tuple(rows.shape)}, this hybrid needs {shape}: "
            "one row for each block, one column for each component."
        )
    if not torch.isfinite(rows).all() or (rows < 0).any():
        raise ValueError(
            f"{name} holds a negative or non-finite weight: {rows.tolist()}. "
            "Weights are at least 0; 0 switches a branch off."
        )
    sums = rows.sum(dim=-1)
    if ((sums - 1).abs() > ROW_SUM_TOLERANCE).any():
        raise ValueError(
            f"{name} has rows that sum to {sums.tolist()}, not to 1. "
            "Divide each row by its sum first."
        )
    return rows / sums.unsqueeze(-1)
