"""One layer of a model built from mixers: a residual line around a norm and a mixer."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from manticore.mixers.interface import Mixer, MixerSpec
from manticore.models.configuration_mixer_lm import MixerLMConfig
from manticore.models.mixer_cache import MixerCacheLayer, cache_layer
from manticore.models.mixer_parts import new_mixer, new_norm


class MixerLayer(GradientCheckpointingLayer):
    """One residual line: x + mixer(norm(x))."""

    def __init__(
        self,
        config: MixerLMConfig,
        spec: MixerSpec,
        layer_idx: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.norm = new_norm(config)
        self.mixer = new_mixer(spec, generator)
        self.layer_idx = layer_idx

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        counted: bool = True,
    ) -> Tensor:
        """Apply the layer.

        Args:
            hidden_states: (batch, seq, d_model).
            attention_mask: (batch, seq) bool, True at tokens, or None: no padding here.
            position_ids: (batch or 1, seq) positions.
            past_key_values: this model's cache, or a stage's view of it; filled in place.
            counted: positions are what a mixer counts by itself, so that one token may `step`.

        Returns:
            (batch, seq, d_model), same dtype.
        """
        mixed = mix_tokens(
            self.mixer,
            self.norm(hidden_states),
            attention_mask,
            position_ids,
            None if past_key_values is None else cache_layer(past_key_values, self.layer_idx),
            counted,
        )
        return hidden_states + mixed


def mix_tokens(
    mixer: Mixer,
    x: Tensor,
    mask: Tensor | None,
    position_ids: Tensor | None,
    cache: MixerCacheLayer | None,
    counted: bool,
) -> Tensor:
    """A mixer on new tokens, by its state where there is a cache; arguments as in `MixerLayer`."""
    if position_ids is not None:
        position_ids = position_ids.expand(x.shape[0], -1)
    if cache is None:
        mixed: Tensor = mixer(x, mask, position_ids)
        return mixed
    seq_len = x.shape[1]
    if seq_len == 1 and mask is None and counted and cache.state is not None:
        y, state = mixer.step(x.squeeze(1), cache.state)
        y = y.unsqueeze(1)
    else:
        y, state = mixer.prefill(x, cache.state, mask, position_ids)
    cache.set_state(state, seq_len)
    return y
