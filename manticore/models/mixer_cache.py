"""What a model built from mixers remembers while it generates, as a Hugging Face cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from manticore.mixers.interface import State


class MixerCache(Cache):
    """The cache of a whole model built from mixers."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=mixer_cache_layers(num_layers))

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse, before any layer is touched."""
        self.layers[0].crop(tokens_to_remove)


class MixerCacheLayer(CacheLayerMixin):
    """The state of one mixer, of a fixed size or growing, and the number of tokens in it."""

    is_sliding = False
    supports_early_init = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.state: State | None = None
        self.seen_tokens = 0
        self.device = torch.device("cpu")

    def set_state(self, state: State, num_tokens: int) -> None:
        """Replace the state by the one after `num_tokens` more tokens."""
        self.state = state
        self.seen_tokens += num_tokens
        self.is_initialized = True
        for tensor in state.values():
            self.device = tensor.device

    def get_seq_length(self) -> int:
        """Tokens seen so far, padding included."""
        return self.seen_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what an attention mask has to cover."""
        return self.seen_tokens + query_length, 0

    def get_max_length(self) -> int:
        """-1: no maximum."""
        return -1

    @property
    def batch_size(self) -> int:
        """Sequences in the state, -1 before the first token or without a state."""
        tensors = list(self.state.values()) if self.state else []
        return tensors[0].shape[0] if tensors else -1

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.seen_tokens, self.is_initialized = None, 0, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Sort the sequences anew, for beam search."""
        self._map(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences."""
        self._map(lambda tensor: tensor[indices.to(tensor.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        self._map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: most states hold no past tokens, so they cannot be rolled back."""
        raise ValueError(
            "The cache of a mixer model cannot be cropped: recurrent states hold no past tokens. "
            "Use a decoding method that never rolls back (greedy, sampling, beam search)."
        )

    def offload(self) -> None:
        """Move the state to the CPU."""
        self._map(lambda tensor: tensor.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Move the state back to where it was made."""
        self._map(lambda tensor: tensor.to(self.device, non_blocking=True))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the mixer makes its own state."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Refuse keys and values; a mixer's state comes by `set_state`."""
        raise TypeError("A mixer's cache layer holds a state, not keys and values.")

    def _map(self, change: Any) -> None:
        if self.state is not None:
            self.state = {name: change(tensor) for name, tensor in self.state.items()}


def mixer_cache_layers(num_layers: int) -> list[CacheLayerMixin]:
    """Empty cache layers."""
    return [MixerCacheLayer() for _ in range(num_layers)]


def cache_layer(cache: Cache, layer_idx: int) -> MixerCacheLayer:
    """The layer with this absolute index, in a whole cache or in the view of one stage."""
    layer = cache.layers[layer_idx - getattr(cache, "lo", 0)]
    if not isinstance(layer, MixerCacheLayer):
        raise ValueError(
            f"The cache has a {type(layer).__name__} where a mixer keeps its state. Pass "
            "MixerCache(len(config.layers)), or no cache and use_cache=True."
        )
    return layer
