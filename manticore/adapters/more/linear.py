"""Linear layers with MoRe adapters."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from manticore.adapters.monarch import MonarchShape, apply_monarch
from manticore.adapters.more.config import MoReConfig
from manticore.adapters.more.layer import MoReLayer, scaled


class MoReLinear(MoReLayer, nn.Module):
    """A linear layer (plain, quantized, or GPT-2's Conv1D) with MoRe adapters."""

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        shape: MonarchShape,
        config: MoReConfig,
        **quantization: Any,
    ) -> None:
        nn.Module.__init__(self)
        MoReLayer.__init__(self, base_layer, **quantization)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, shape, config)

    def _add(self, result: Tensor, x: Tensor, adapter: str) -> Tensor:
        first, second = self.more_A[adapter], self.more_B[adapter]
        x = self.more_dropout[adapter](self._cast_input_dtype(x, first.dtype))
        scale = self.scaling[adapter]
        return result + apply_monarch(x, first, scaled(second, scale), self.shapes[adapter])

    def _orient(self, dense: Tensor) -> Tensor:
        return dense.T if isinstance(self.get_base_layer(), Conv1D) else dense

    def __repr__(self) -> str:
        return "more." + nn.Module.__repr__(self)
