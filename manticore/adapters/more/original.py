"""Keep what merging replaces, so that unmerging gives back the same bits.

Subtracting the change again would round twice per cycle, drift in bfloat16, and with a quantized
weight give another weight altogether.
"""

from __future__ import annotations

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
        self._weight: Tensor = plain.weight if self._quantized else plain.weight.data
        self._statistics = dict(vars(plain.weight)) if self._quantized else {}
        state = getattr(plain, "state", None)
        self._state = dict(vars(state)) if self._quantized and state is not None else {}

    def restore(self, layer: Any) -> None:
        """Put the weight back, onto the device (and, for a plain weight, dtype) of now."""
        if not self._quantized:
            now = layer.get_base_layer().weight
            now.data = self._weight.to(device=now.device, dtype=now.dtype)
            return
        layer.base_layer = self._base_layer
        plain = layer.get_base_layer()
        vars(self._weight).clear()
        vars(self._weight).update(self._statistics)
        plain.weight = self._weight
        if self._state:
            vars(plain.state).update(self._state)
