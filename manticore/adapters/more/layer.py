"""Layers that carry MoRe adapters: what every kind of layer shares.

A layer wraps a frozen one and adds to its output. The factors of all adapters live in `more_A` and
`more_B`, keyed by the adapter's name, in the shapes of `manticore.adapters.monarch`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _get_in_out_features,
    check_adapters_to_merge,
)
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn

from manticore.adapters.monarch import (
    MonarchShape,
    project,
    to_dense,
)
from manticore.adapters.more.config import MoReConfig
from manticore.adapters.more.original import Original, base_weight

BASE = "__base__"
"""Name that stands for no adapter in `adapter_names`."""


class MoReLayer(BaseTunerLayer):
    """What all layers with MoRe adapters share: adapters by name, merging, scaling."""

    adapter_layer_names: tuple[str, ...] = ("more_A", "more_B")
    other_param_names: tuple[str, ...] = ("shapes", "scaling", "more_dropout")
    base_layer: Any
    # Inherited; said again for the type checker, which does not read PEFT.
    get_base_layer: Callable[[], Any]
    _cast_input_dtype: Callable[[Tensor, torch.dtype], Tensor]
    _get_embed_scale: Callable[[], Tensor | None]

    def __init__(self, base_layer: nn.Module, **quantization: Any) -> None:
        self.base_layer = base_layer
        self.more_A = nn.ParameterDict()
        self.more_B = nn.ParameterDict()
        self.more_dropout = nn.ModuleDict()
        self.shapes: dict[str, MonarchShape] = {}
        self.scaling: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        self._disable_adapters = False
        self._original: Original | None = None
        plain = self.get_base_layer()
        self.in_features, self.out_features = self._features(plain)
        self.quantization_backend = resolve_quantization_backend(plain, **quantization)

    @staticmethod
    def _features(plain: nn.Module) -> tuple[int, int]:
        return _get_in_out_features(plain)

    # Adapters

    def update_layer(self, adapter_name: str, shape: MonarchShape, config: MoReConfig) -> None:
        """Add an adapter, or start one of that name anew."""
        self.shapes[adapter_name] = shape
        self.scaling[adapter_name] = 1.0
        drop = config.more_dropout
        self.more_dropout[adapter_name] = nn.Dropout(drop) if drop else nn.Identity()
        self.more_A[adapter_name] = nn.Parameter(torch.empty(shape.first_shape))
        self.more_B[adapter_name] = nn.Parameter(torch.empty(shape.second_shape))
        self.reset_parameters(adapter_name, config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def reset_parameters(self, adapter_name: str, zero_change: bool = True) -> None:
        """Draw the first factor as nn.Linear draws a block; zero the second."""
        shape = self.shapes[adapter_name]
        bound = shape.block_in**-0.5
        nn.init.uniform_(self.more_A[adapter_name], -bound, bound)
        self._reset_second(adapter_name, zero_change)

    def _reset_second(self, adapter_name: str, zero_change: bool) -> None:
        bound = 0.0 if zero_change else self.shapes[adapter_name].block_rank ** -0.5
        nn.init.uniform_(self.more_B[adapter_name], -bound, bound)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Multiply an adapter out, in the orientation of the base layer's weight."""
        return self._orient(self._dense(adapter)).to(self.more_A[adapter].dtype)

    def set_delta_weight(self, adapter: str, delta: Tensor) -> float:
        """Make an adapter the best approximation of a given weight change.

        Args:
            delta: the change, in the orientation of the base layer's weight.

        Returns:
            What is lost: the squared error, as a share of the squared norm of `delta`.
        """
        a, b = self.more_A[adapter], self.more_B[adapter]
        wanted = self._orient(delta.to(a.device))  # (out_features, in_features)
        if wanted.shape != (self.out_features, self.in_features):
            raise ValueError(
                f"The weight change is {tuple(delta.shape)}, but the base weight is "
                f"{tuple(base_weight(self).shape)}."
            )
        wide = wanted.detach().to(torch.promote_types(wanted.dtype, torch.float32))
        first, second = project(wide / self.scaling[adapter], self.shapes[adapter])
        with torch.no_grad():
            a.copy_(first)
            b.copy_(second)
            lost = (wide - self._dense(adapter)).square().sum()
        return float(lost / wide.square().sum().clamp_min(torch.finfo(wide.dtype).tiny))

    def _dense(self, adapter: str) -> Tensor:
        """Multiply an adapter out, (out_features, in_features), in float32 or better."""
        wide = torch.promote_types(self.more_A[adapter].dtype, torch.float32)
        first, second = self.more_A[adapter].to(wide), self.more_B[adapter].to(wide)
        return to_dense(first, second, self.shapes[adapter]) * self.scaling[adapter]

    def _orient(self, dense: Tensor) -> Tensor:
        return dense

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    # Scaling, for `peft.helpers.rescale_adapter_scale` and for diffusers

    def set_scale(self, adapter: str, scale: float) -> None:
        """Multiply what an adapter adds by `scale`; the natural scale is 1."""
        if adapter in self.scaling:
            self.scaling[adapter] = scale

    def scale_layer(self, scale: float) -> None:
        """Multiply the scale of the active adapters."""
        for adapter in self._active_here():
            self.scaling[adapter] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the scale of the active adapters; without a number, set it to 1."""
        for adapter in self._active_here():
            self.scaling[adapter] = 1.0 if scale is None else self.scaling[adapter] / scale

    # Merging

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base weight. The original tensor is kept, so unmerging is exact."""
        wanted = check_adapters_to_merge(self, adapter_names)
        names = [name for name in wanted if name in self.more_A]
        if not names:
            return
        if self.quantization_backend is not None:
            warnings.warn(
                "Merging into quantized weights rounds them anew, so that outputs change a little.",
                stacklevel=2,
            )
        merged = self.merged_weight(names, safe_merge)
        if self._original is None:
            self._original = Original(self)
        self.set_base_weight(merged)
        self.merged_adapters.extend(names)

    def merged_weight(self, names: Iterable[str], safe_merge: bool = False) -> Tensor:
        """Compute the base weight plus the adapters `names`, writing nothing."""
        weight = base_weight(self)
        with torch.no_grad():
            total = weight.to(torch.promote_types(weight.dtype, torch.float32))
            for name in names:
                total = total + self._orient(self._dense(name)).to(total)
                if safe_merge and not torch.isfinite(total.to(weight.dtype)).all():
                    raise ValueError(
                        "NaNs detected in the merged weights. "
                        f"The adapter {name} seems to be broken"
                    )
            return total.to(weight.dtype)

    def unmerge(self) -> None:
        """Put the original base weight back, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        if self._original is not None:
            self._original.restore(self)
        self._original = None
        self.merged_adapters.clear()

    # Forward

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the base layer and add what the adapters say."""
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is not None:
            self._check_rows(x, adapter_names)
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        if self.merged:
            return result
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        if adapter_names is not None:
            return self._add_by_row(result, x, adapter_names)
        dtype = result.dtype
        for adapter in self._active_here():
            result = self._add(result, x, adapter)
        return result.to(dtype)

    def _check_rows(self, x: Tensor, adapter_names: list[str]) -> None:
        if len(x) != len(adapter_names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, "
                "please call `unmerge_adapter` first."
            )

    def _add_by_row(self, result: Tensor, x: Tensor, adapter_names: list[str]) -> Tensor:
        """Add to every row of the batch what its own adapter says."""
        result = result.clone()
        for adapter in dict.fromkeys(adapter_names):
            if adapter == BASE or adapter not in self.more_A:
                continue
            rows = [row for row, name in enumerate(adapter_names) if name == adapter]
            result[rows] = self._add(result[rows], x[rows], adapter).to(result.dtype)
        return result

    def _add(self, result: Tensor, x: Tensor, adapter: str) -> Tensor:
        raise NotImplementedError

    def _active_here(self) -> list[str]:
        return [name for name in self.active_adapters if name in self.more_A]


def scaled(second: Tensor, scale: float) -> Tensor:
    """Multiply the second factor by an adapter's scale, unless it is 1."""
    return second if scale == 1.0 else second * scale
