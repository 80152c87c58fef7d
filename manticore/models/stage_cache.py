"""The part of a component's cache that belongs to one range of its layers."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, LinearAttentionCacheLayerMixin


class StageCache(Cache):
    """A view of the cache layers `lo`..`lo + len(layers) - 1` of one component.

    Layers ask with their absolute index, because they are not renumbered; the code that builds
    attention masks counts from zero. The number of tokens seen is given from outside: a recurrent
    layer knows none, and a layer that was skipped knows too few. The view is made for one forward
    pass and shares the layer objects.
    """

    def __init__(self, layers: Sequence[Any], lo: int, seen_tokens: int) -> None:
        super().__init__(layers=list(layers))
        self.lo = lo
        self.seen_tokens = seen_tokens

    # What layers call, with absolute indices.

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values (batch, kv_heads, seq, head_dim); returns all of them."""
        return super().update(key_states, value_states, layer_idx - self.lo, *args, **kwargs)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """The last inputs of the convolution (batch, channels, kernel), None before the first."""
        return super().get_conv_state(layer_idx - self.lo, state_idx)

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        """Append inputs of the convolution; returns past and new ones together."""
        return super().update_conv_state(conv_states, layer_idx - self.lo, state_idx, **kwargs)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """The state of the scan (batch, channels, state), None before the first token."""
        return super().get_recurrent_state(layer_idx - self.lo, state_idx)

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        """Replace the state of the scan."""
        return super().update_recurrent_state(
            recurrent_states, layer_idx - self.lo, state_idx, **kwargs
        )

    def is_recording_past(self, layer_idx: int) -> bool:
        """Whether the layer keeps what it would otherwise drop (assisted decoding)."""
        return super().is_recording_past(layer_idx - self.lo)

    def has_previous_state(
        self, layer_idx: int | None = None, state_idx: int | None = None
    ) -> bool:
        """Whether a recurrent layer has seen a token; without an index, any of this stage."""
        if layer_idx is not None:
            return super().has_previous_state(layer_idx - self.lo, state_idx)
        return any(
            isinstance(layer, LinearAttentionCacheLayerMixin)
            and any(layer.has_previous_state.values())
            for layer in self.layers
        )

    # What the code around the layers calls, counting from zero.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen before this forward pass."""
        return self.seen_tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask must cover."""
        layer = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        if layer is None or not hasattr(layer, "get_mask_sizes"):
            return self.seen_tokens + query_length, 0
        return layer.get_mask_sizes(query_length)

    @property
    def is_compileable(self) -> bool:
        # All-recurrent slices would say yes, and masks would then be built for a static cache.
        return False
