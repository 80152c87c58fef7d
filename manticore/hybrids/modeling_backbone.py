"""The hybrid's backbone: components, mixture, translators, and their forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from manticore.hybrids.cache import ManticoreCache
from manticore.hybrids.configuration_manticore import ManticoreConfig
from manticore.hybrids.inputs import Inputs, count_positions
from manticore.hybrids.loyalty import Loyalty
from manticore.hybrids.mixture import Mixture
from manticore.hybrids.modeling_base import ManticorePreTrainedModel, Router, has_attention
from manticore.hybrids.projectors import SharedProjectors, Translators
from manticore.hybrids.remembered import Remembered
from manticore.hybrids.shared import run_shared
from manticore.hybrids.streams import Weights, concatenate, run_streams
from manticore.models import pretrained, token_step
from manticore.models.component_cache import takes_cache
from manticore.models.component_lengths import (
    check_length,
    has_position_table,
    longest_sequence,
    outgrows_past,
)
from manticore.models.family import RefusedError
from manticore.models.fast_paths import bind_fast_paths
from manticore.models.rotary_lengths import longrope_border
from manticore.models.supported import check_supported


@dataclass
class ManticoreModelOutput(BaseModelOutputWithPast):
    """Backbone output.

    With streams mixing, `streams` holds y_B of the active components and `weights[k][j]` how much
    the head of k reads of stream j.
    """

    streams: dict[int, Tensor] | None = None
    weights: list[list[Tensor]] | None = None


class ManticoreModel(ManticorePreTrainedModel):
    """K pretrained components cut into B blocks, mixed; everything but the language heads.

    With `mixing="streams"`, for component k and block b (widths d_k, mixture rows a_b):

        y_0k = embed_k(ids)
        x_bk = sum_j w_bkj T_bjk(y_{b-1,j})
        w_bk = softmax_j(log a_{b-1,j} + s_b [j = k])
        y_bk = Block_bk(x_bk)                      skipped when a_bk = 0

    `mixing="shared"` is the Manticore paper's construction (arXiv 2406.00894); see `shared.py`.
    """

    components: Any
    """An `nn.ModuleList` of base models."""

    def __init__(
        self, config: ManticoreConfig, components: Sequence[PreTrainedModel] | None = None
    ) -> None:
        super().__init__(config)
        if components is None:
            components = [build_component(sub_config) for sub_config in config.components]
        self.components = nn.ModuleList(components)
        # Read at every token, and reading a config takes its time.
        self.num_blocks, self.widths = config.num_blocks, config.widths
        self.mixing, self.partition = config.mixing, config.partition
        parts = list(enumerate(config.components))
        self.with_tables = [k for k, part in parts if has_position_table(part)]
        self.with_limits = [k for k, part in parts if longest_sequence(part) is not None]
        self.with_borders = [k for k, part in parts if longrope_border(part) is not None]
        self.takes_cache = all(map(takes_cache, config.components))
        self.fast_paths = [bind_fast_paths(component) for component in components]
        self.rows = Mixture(
            config.num_blocks, len(components), config.own_embed_mixture, config.own_head_mixture
        )
        if config.mixing == "streams":
            self.translators = Translators(config.num_blocks, config.widths)
            self.remembered_weights: Remembered[list[Weights]] = Remembered()
            self.loyalty = Loyalty(config.loyalty_values(), config.learn_loyalty)
            self.router = None
            if config.router and len(components) > 1:
                self.router = Router(sum(config.widths), len(components))
        else:
            self.projectors = SharedProjectors(config.num_blocks, config.widths, config.hidden_size)
        self._no_split_modules = sorted(
            {name for component in components for name in component._no_split_modules or []}
        )
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: ManticoreCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> ManticoreModelOutput:
        """Run the hybrid up to (not including) its heads.

        Args:
            input_ids: (batch, seq).
            attention_mask: (batch, past + seq), 1 for tokens and 0 for padding on either side.
            position_ids: (batch, seq); default: counted from the attention mask.
            inputs_embeds: (batch, seq, sum of widths), from `embed`, instead of `input_ids`.

        Returns:
            `last_hidden_state` is (batch, seq, sum of widths) or, for `shared`, (batch, seq, D).
        """
        inputs = self._inputs(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache
        )
        boundaries: list[Tensor] | None = [] if output_hidden_states else None
        streams = weights = None
        if self.mixing == "streams":
            streams, weights = run_streams(self, inputs, boundaries)
            last = concatenate(self, streams)
        else:
            last = run_shared(self, inputs, boundaries)
        if inputs.cache is not None:
            inputs.cache.advance(inputs.position_ids.shape[1])
        return ManticoreModelOutput(
            last_hidden_state=last,
            past_key_values=inputs.cache,
            hidden_states=None if boundaries is None else tuple(boundaries),
            streams=streams,
            weights=weights,
        )

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings of all components side by side: (batch, seq, sum of widths)."""
        parts = [pretrained.embed_tokens(c, input_ids) for c in self.components]
        return torch.cat(parts, dim=-1)

    def embed_component(self, k: int, inputs: Inputs) -> Tensor:
        """Component k's token embeddings, without positions: (batch, seq, d_k)."""
        if inputs.inputs_embeds is None:
            assert inputs.input_ids is not None  # checked in `_inputs`
            return pretrained.embed_tokens(self.components[k], inputs.input_ids)
        return inputs.inputs_embeds.split(self.widths, dim=-1)[k]

    def enter_component(self, k: int, hidden: Tensor, inputs: Inputs) -> Tensor:
        """Add what component k adds before its first layer (learned positions, dropout)."""
        return pretrained.enter(self.components[k], hidden, inputs.position_ids)

    def enter_streams(self, inputs: Inputs) -> dict[int, Tensor]:
        """y_0k of the components whose embeddings are used."""
        return {
            k: self.enter_component(k, self.embed_component(k, inputs), inputs)
            for k in self.rows.active_embed()
        }

    def is_entry(self, k: int, block: int) -> bool:
        """Whether this is the first block that component k runs."""
        return all(k not in self.rows.active(earlier) for earlier in range(block))

    def run_block(
        self, k: int, block: int, hidden: Tensor, inputs: Inputs, end: int | None = None
    ) -> Tensor:
        """Block_bk: (batch, seq, d_k) -> (batch, seq, d_k), cache of these layers updated.

        Args:
            end: run all blocks up to this one (not included) as one; default: only `block`.
        """
        final = block if end is None else end - 1
        first, last = self.partition[k][block][0], self.partition[k][final][1]
        cache = None if inputs.cache is None else inputs.cache.stage(k, first, last)
        component, final_norm = self.components[k], final == self.num_blocks - 1
        if inputs.is_plain_token and cache is not None and token_step.takes_token(component):
            if k not in inputs.rotary:
                table = token_step.rotary_table(component, hidden, inputs.position_ids)
                inputs.rotary[k] = table
            return token_step.run_token(
                component,
                hidden,
                first,
                last,
                position_ids=inputs.position_ids,
                cache=cache,
                rotary=inputs.rotary[k],
                final_norm=final_norm,
            )
        return pretrained.run_layers(
            component,
            hidden,
            first,
            last,
            attention_mask=inputs.attention_mask,
            position_ids=inputs.position_ids,
            cache=cache,
            final_norm=final_norm,
        )

    def _inputs(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: ManticoreCache | None,
        inputs_embeds: Tensor | None,
        use_cache: bool | None,
    ) -> Inputs:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        given = input_ids if input_ids is not None else inputs_embeds
        assert given is not None
        if inputs_embeds is not None and inputs_embeds.shape[-1] != sum(self.widths):
            raise ValueError(
                f"inputs_embeds has width {inputs_embeds.shape[-1]}; the components' embeddings "
                f"side by side have {sum(self.widths)} ({self.widths}). `embed` makes them."
            )
        if use_cache is None:
            use_cache = self.takes_cache and not self.training
        if self.training and any(map(pretrained.is_checkpointing, self.components)):
            use_cache = False
        if use_cache and cache is None:
            cache = ManticoreCache(self.config.components)
        seen = 0 if cache is None else cache.seen_tokens
        self._check(given, attention_mask, seen)
        is_plain = token_step.is_plain_token(given, attention_mask)
        if position_ids is None:
            mask = None if is_plain else attention_mask
            position_ids = count_positions(mask, given.shape[1], seen, given.device)
        if seen and self.outgrows_past(position_ids):
            raise RefusedError(
                "A component turns to its long rotary factors with these tokens (longrope), and "
                "the cache was filled by the short ones. Run the whole sequence again with an "
                "empty cache, as `generate` does."
            )
        return Inputs(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            is_plain_token=is_plain,
        )

    def outgrows_past(self, position_ids: Tensor) -> bool:
        """Whether new tokens at these positions, (batch or 1, seq), need all past ones anew."""
        return any(
            outgrows_past(self.config.components[k], position_ids)
            for k in self.with_borders and self._running()
        )

    def _entering(self) -> list[int]:
        """Components that `enter_component` is called for."""
        return self.rows.active_embed() if self.mixing == "streams" else self._running()

    def _running(self) -> list[int]:
        """Components that run a block."""
        return sorted({k for b in range(self.num_blocks) for k in self.rows.active(b)})

    def _check(self, given: Tensor, attention_mask: Tensor | None, seen: int) -> None:
        length = seen + given.shape[1]
        for k in self.with_limits and self._running():
            if k not in self.with_tables:
                check_length(self.config.components[k], length)
        for k in self.with_tables and self._entering():
            check_length(self.config.components[k], length)
        if attention_mask is not None and tuple(attention_mask.shape) != (given.shape[0], length):
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; with {seen} cached and "
                f"{given.shape[1]} new tokens it must be ({given.shape[0]}, {length})."
            )


def build_component(config: PreTrainedConfig) -> PreTrainedModel:
    """An uninitialised base model for one sub-config (weights are loaded into it later)."""
    check_supported(config)
    cls = AutoModel._model_mapping[type(config)]
    if config._attn_implementation and not has_attention(cls, config._attn_implementation):
        # Passing "sdpa" down to a model without attention would raise.
        config._attn_implementation = "eager"
    return pretrained.inner_model(cls._from_config(config))
