"""Embeddings with MoRe adapters."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from manticore.adapters.monarch import MonarchShape, expand_second
from manticore.adapters.more.config import MoReConfig
from manticore.adapters.more.layer import MoReLayer, scaled


class MoReEmbedding(MoReLayer, nn.Module):
    """An embedding with MoRe adapters: the matrix is read at one column per token."""

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, shape: MonarchShape, config: MoReConfig
    ) -> None:
        nn.Module.__init__(self)
        MoReLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, shape, config)

    def reset_parameters(self, adapter_name: str, zero_change: bool = True) -> None:
        """Zero the first factor and draw the second, as LoRA does for embeddings.

        A token reads a single column of the first factor: drawn at the scale of a wide sum, it
        would be tiny, and so would be the second factor's gradient.
        """
        if zero_change:
            nn.init.zeros_(self.more_A[adapter_name])
        else:
            nn.init.normal_(self.more_A[adapter_name])
        nn.init.normal_(self.more_B[adapter_name])

    def _add(self, result: Tensor, x: Tensor, adapter: str) -> Tensor:
        first, second, shape = self.more_A[adapter], self.more_B[adapter], self.shapes[adapter]
        n, r, b = shape.first_shape
        columns = first.transpose(1, 2).reshape(n * b, r)  # column of token k b + j
        read = F.embedding(x, columns, padding_idx=self.get_base_layer().padding_idx)
        block = F.one_hot(x // b, n).to(read.dtype)
        # Only the token's own input block passes numbers on.
        h = (block[..., :, None] * self.more_dropout[adapter](read)[..., None, :]).flatten(-2)
        added = F.linear(h, expand_second(scaled(second, self.scaling[adapter]), shape))
        embed_scale = self._get_embed_scale()
        return result + (added if embed_scale is None else added * embed_scale.to(added))

    def _orient(self, dense: Tensor) -> Tensor:
        return dense.T

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return False  # PEFT's own conversion writes linear layers only; ours writes both

    def __repr__(self) -> str:
        return "more." + nn.Module.__repr__(self)
