"""A transformer whose attention was replaced, layer by layer: the backbone and the language model.

Embedding, norms, residual lines, MLPs and head are the source's; what they are is in
`block_spec`. Cache, positions, padding and generation are those of all models built from mixers.

Shapes: B batch, T time, D d_model, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from manticore.conversion.block_spec import BlockSpec
from manticore.conversion.configuration_converted import ConvertedConfig
from manticore.conversion.feed_forward import FeedForward
from manticore.mixers.interface import MixerSpec
from manticore.models.mixer_cache import cache_layer
from manticore.models.mixer_layer import mix_tokens
from manticore.models.mixer_parts import embedding, linear, new_mixer
from manticore.models.modeling_mixer_lm import MixerForCausalLM, MixerModel, MixerPreTrainedModel
from manticore.models.no_positions import NoPositions


class ConvertedPreTrainedModel(MixerPreTrainedModel):
    """What backbone and language model share: how weights start."""

    config_class = ConvertedConfig  # type: ignore[assignment]
    config: ConvertedConfig
    _no_split_modules = ["ConvertedLayer"]  # noqa: RUF012 (Hugging Face's protocol)


class ConvertedLayer(GradientCheckpointingLayer):
    """One block: a token mixer and an MLP on the residual lines of the source."""

    def __init__(
        self,
        block: BlockSpec,
        spec: MixerSpec,
        layer_idx: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.topology = block.topology
        self.mixer_norm = new_norm(block)
        self.mlp_norm = None if block.shared_norm else new_norm(block)
        self.mixer = new_mixer(spec, generator)
        self.mlp = FeedForward(block, generator)
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
        """Apply the block to (batch, seq, d_model); arguments as in `MixerLayer`."""
        normed = hidden_states if self.topology == "post-norm" else self.mixer_norm(hidden_states)
        cache = None if past_key_values is None else cache_layer(past_key_values, self.layer_idx)
        mixed = mix_tokens(self.mixer, normed, attention_mask, position_ids, cache, counted)
        if self.topology == "parallel":
            read = normed if self.mlp_norm is None else self.mlp_norm(hidden_states)
            return hidden_states + mixed + self.mlp(read)
        assert self.mlp_norm is not None  # only parallel blocks share a norm
        if self.topology == "post-norm":
            hidden_states = hidden_states + self.mixer_norm(mixed)
            return hidden_states + self.mlp_norm(self.mlp(hidden_states))
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class ConvertedModel(ConvertedPreTrainedModel, MixerModel):
    """Embedding, blocks and final norm; everything but a head."""

    def __init__(self, config: ConvertedConfig, generator: torch.Generator | None = None) -> None:
        MixerPreTrainedModel.__init__(self, config)  # type: ignore[call-arg]
        block, std = config.block_spec, config.initializer_range
        self.embed_tokens = embedding(config.vocab_size, block.hidden_size, std, generator)
        self.positions: Any = NoPositions()
        if block.learned_positions is not None:
            self.positions = embedding(block.learned_positions, block.hidden_size, std, generator)
        self.layers = nn.ModuleList(
            ConvertedLayer(around, spec, index, generator)
            for index, (around, spec) in enumerate(
                zip(config.layer_blocks(), config.specs(), strict=True)
            )
        )
        self.norm = new_norm(block)
        self.gradient_checkpointing = False
        self.finish()


class ConvertedForCausalLM(ConvertedPreTrainedModel, MixerForCausalLM):
    """A language model whose layers were converted, or kept.

    Made by `manticore.transfer` and by `from_pretrained`; saves, generates and takes adapters as
    any model of transformers. `config.layers` names the mixer of every block.
    """

    def __init__(self, config: ConvertedConfig, generator: torch.Generator | None = None) -> None:
        MixerPreTrainedModel.__init__(self, config)  # type: ignore[call-arg]
        self.model = ConvertedModel(config, generator)
        bias = True if config.head_bias else None
        self.lm_head = linear(config.hidden_size, config.vocab_size, generator, bias)
        self.finish()


def new_norm(block: BlockSpec) -> nn.Module:
    """A norm of the residual stream."""
    norm = nn.RMSNorm if block.norm == "rms" else nn.LayerNorm
    return norm(block.hidden_size, eps=block.norm_eps)


__all__ = ["ConvertedForCausalLM", "ConvertedLayer", "ConvertedModel", "ConvertedPreTrainedModel"]
