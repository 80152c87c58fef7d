"""Keep what merging replaces, so that unmerging gives back the same bits.

Subtracting the change again would round twice per cycle, drift in bfloat16, and with a quantized
weight give another weight altogether.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


class Original:
    """The weight of a base layer before merging, and where it goes back to.

    Merging into a plain weight gives its Parameter a new tensor: the old tensor is kept, nothing is
    copied. Merging into a quantized weight makes a new Parameter (or a new layer): the old one is
    kept with its statistics, which the quantization code changes on the way.
    """

    def __init__(self, layer: Any) -> None:
        plain = layer.get_base_layer()
        self._quantized = layer.quantization_backend is not None
        self._base_layer: nn.Module = layer.base_layer
        self._parameter: Tensor = plain.weight
        self._data: Tensor = plain.weight.data
        self._statistics: dict[str, Any] = {}
        self._state: dict[str, Any] = {}
        if self._quantized:
            self._statistics = dict(vars(plain.weight))
            if "quant_state" in self._statistics:
                self._statistics["quant_state"] = copy.copy(self._statistics["quant_state"])
            self._state = dict(vars(plain.state)) if hasattr(plain, "state") else {}

    def restore(self, layer: Any) -> None:
        """Put the weight back, onto the device (and, for a plain weight, dtype) of now."""
        if not self._quantized:
            now = layer.get_base_layer().weight
            now.data = self._data.to(device=now.device, dtype=now.dtype)
            return
        layer.base_layer = self._base_layer
        plain = layer.get_base_layer()
        self._parameter.data = self._data
        vars(self._parameter).clear()
        vars(self._parameter).update(self._statistics)
        plain.weight = self._parameter
        if self._state:
            vars(plain.state).update(self._state)


def base_weight(layer: Any) -> Tensor:
    """Read a layer's base weight, dequantized, leaving it as it is.

    On some processors bitsandbytes reorders a 4-bit weight at the first forward pass without
    gradients, and dequantizing it would then give noise: it is put in order for the reading.
    """
    weight = layer.get_base_layer().weight
    state: Any = getattr(weight, "quant_state", None)
    if not getattr(state, "packing_format_for_cpu", False):
        return layer.get_base_weight()
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    kept = Original(layer)
    try:
        weight.data, weight.quant_state = _convert_weight_packed_for_cpu_inverse(weight.data, state)
        return layer.get_base_weight()
    finally:
        kept.restore(layer)
