"""Small models built from mixers: the backbone and the causal language model.

    h_0 = embed(ids) + positions      h_i = h_{i-1} + mixer_i(norm_i(h_{i-1}))      head(norm(h_L))

Every token mixer and every channel mixer is a residual line of its own (Poli et al., 2024,
arXiv:2403.17844, section 3). Weights come from a `torch.Generator` or, as Hugging Face does it,
from torch's default one.

Shapes: B batch, T time, D d_model, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from manticore.mixers.interface import Mixer
from manticore.models.configuration_mixer_lm import MixerLMConfig
from manticore.models.mixer_cache import MixerCache
from manticore.models.mixer_layer import MixerLayer
from manticore.models.mixer_parts import (
    SinusoidalPositions,
    embedding,
    has_real_weights,
    linear,
    mark_initialised,
    mask_of_new_tokens,
    new_mixer,
    new_norm,
    new_positions,
    positions_from,
    redraw,
)


class MixerPreTrainedModel(PreTrainedModel):
    """What backbone and task heads share: how weights start."""

    config_class = MixerLMConfig
    config: MixerLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MixerLayer"]  # noqa: RUF012 (Hugging Face's protocol)
    # Recurrent states cannot be rolled back; assisted decoding refuses cleanly because of this.
    _is_stateful = True

    @classmethod
    def from_generator(
        cls, config: MixerLMConfig, generator: torch.Generator | None, **options: Any
    ) -> Self:
        """A fresh model whose weights are drawn from `generator` and from nothing else."""
        return cls(config, generator=generator, **options)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # forward builds the MixerCache

    @classmethod
    def is_custom_code(cls) -> bool:
        # transformers would otherwise leave buffers that are not saved as garbage after loading.
        return False

    def finish(self) -> None:
        """End a constructor: the weights are drawn already, unless there are none yet (meta)."""
        if has_real_weights(self):
            mark_initialised(self)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Reached for what from_pretrained built without weights and found in no checkpoint.
        if isinstance(module, Mixer):
            redraw(module, new_mixer(module.spec, None))
        elif isinstance(module, SinusoidalPositions):
            redraw(module, SinusoidalPositions(module.d_model))
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.RMSNorm | nn.LayerNorm):
            init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            redraw(module, linear(module.in_features, module.out_features, None, module.bias))


class MixerModel(MixerPreTrainedModel):
    """Embedding, layers and final norm; everything but a head."""

    def __init__(self, config: MixerLMConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(config)
        self.embed_tokens = embedding(
            config.vocab_size, config.hidden_size, config.initializer_range, generator
        )
        self.positions = new_positions(config, generator)
        self.layers = nn.ModuleList(
            MixerLayer(config, spec, index, generator) for index, spec in enumerate(config.specs())
        )
        self.norm = new_norm(config)
        self.gradient_checkpointing = False
        self.finish()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run all layers.

        Args:
            input_ids: (batch, seq); or `inputs_embeds`: (batch, seq, d_model).
            attention_mask: (batch, past + seq), 1 for tokens and 0 for padding; None: no padding.
            position_ids: (batch or 1, seq); default: how many real tokens come before.
            past_key_values: what an earlier call returned; it is filled in place.

        Returns:
            `last_hidden_state` is (batch, seq, d_model), behind the final norm.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds, and not both.")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._cache(past_key_values, use_cache)
        past = 0 if cache is None else cache.get_seq_length()
        counted = positions_from(attention_mask, past, hidden)
        given = counted if position_ids is None else position_ids
        self._check_length(past + hidden.shape[1])
        hidden = hidden + self.positions(given).to(hidden.dtype)
        mask = mask_of_new_tokens(attention_mask, hidden)
        arguments: dict[str, Any] = {
            "attention_mask": mask,
            "position_ids": given,
            "past_key_values": cache,
            # Only one token with a cache asks, so training never waits for the answer.
            "counted": cache is None
            or hidden.shape[1] > 1
            or given is counted
            or bool((given == counted).all()),
        }
        states: list[Tensor] | None = [hidden] if output_hidden_states else None
        for layer in self.layers:
            hidden = layer(hidden, **arguments)
            if states is not None:
                states.append(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden),
            past_key_values=cache,
            hidden_states=None if states is None else tuple(states),
        )

    def _cache(self, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        if use_cache is None:
            use_cache = cache is not None or (self.config.use_cache and not self.training)
        checkpointing = self.training and any(
            getattr(layer, "gradient_checkpointing", False) for layer in self.layers
        )
        if not use_cache or checkpointing:
            return None
        return MixerCache(len(self.layers)) if cache is None else cache

    def _check_length(self, length: int) -> None:
        limit = self.config.max_position_embeddings
        if isinstance(self.positions, nn.Embedding) and limit is not None and length > limit:
            raise ValueError(
                f"A sequence of {length} tokens does not fit a table of {limit} positions. Use at "
                f"most {limit} tokens, or set max_position_embeddings or positions='none'."
            )


class MixerForCausalLM(MixerPreTrainedModel, GenerationMixin):
    """A language model built from mixers."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MixerLMConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(config)
        self.model = MixerModel(config, generator)
        self.lm_head = linear(config.hidden_size, config.vocab_size, generator, config.head_bias)
        self.finish()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Predict the next token at every position.

        Args:
            labels: (batch, seq) token ids, -100 is not scored; shifted inside, so pass the inputs.
            logits_to_keep: only the last so many positions (or these indices) get logits; 0: all.

        Returns:
            `logits` is (batch, kept positions, vocab_size); `loss` in nats per token.
        """
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
        )


__all__ = [
    "MixerForCausalLM",
    "MixerModel",
    "MixerPreTrainedModel",
]
