"""The pretrained hybrid as a Hugging Face causal language model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from manticore.hybrids.cache import ManticoreCache
from manticore.hybrids.component_configs import is_tied
from manticore.hybrids.configuration_manticore import ManticoreConfig
from manticore.hybrids.modeling_backbone import ManticoreModel, ManticoreModelOutput
from manticore.hybrids.modeling_base import ManticorePreTrainedModel
from manticore.hybrids.streams import read
from manticore.models.component_logits import (
    component_logits,
    has_float32_logits,
    has_head_bias,
    has_plain_logits,
)

__all__ = ["ManticoreForCausalLM", "ManticoreModel", "ManticorePreTrainedModel"]


class ManticoreForCausalLM(ManticorePreTrainedModel, GenerationMixin):
    """A hybrid that predicts tokens: logits = sum_k g_k head_k(r_k).

    For `streams`, r_k is gathered like a block's input at boundary B and
    g = softmax(log gamma + router(y_B)); for `shared`, r_k is the truncated stream and g = a_1.
    """

    heads: Any
    """An `nn.ModuleList` with one head for each component."""

    def __init__(
        self,
        config: ManticoreConfig,
        components: Sequence[PreTrainedModel] | None = None,
        heads: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__(config)
        self.model = ManticoreModel(config, components)
        self.heads = nn.ModuleList(heads or [new_head(config, k) for k in config.components])
        self._tied_weights_keys = tied_keys(self)
        self.post_init()

    def refresh_tied_keys(self) -> None:
        """Tell Hugging Face which heads are embedding tables, after that has changed."""
        self._tied_weights_keys = tied_keys(self)
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)

    @classmethod
    def from_components(cls, components: Sequence[Any], **options: Any) -> "ManticoreForCausalLM":
        """Build a hybrid from pretrained models; see `construction.from_components`."""
        from manticore.hybrids.construction import from_components

        return from_components(cls, components, **options)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # forward builds the ManticoreCache

    def prune(self, threshold: float = 1e-3, **options: Any) -> "ManticoreForCausalLM":
        """A smaller hybrid without the branches below `threshold`; see `pruning.prune`."""
        from manticore.hybrids.pruning import prune

        return prune(self, threshold, **options)

    def idle_parameters(self) -> list[nn.Parameter]:
        """Parameters that no gradient reaches at this mixture; see `idle_parts`."""
        from manticore.hybrids.idle_parts import idle_parameters

        return idle_parameters(self)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: ManticoreCache | None = None,
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
        logits = self.mix_heads(output, kept_positions(logits_to_keep))
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

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: ManticoreCache | None = None,
        inputs_embeds: Tensor | None = None,  # `generate` looks for the name in the signature
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As usual; all tokens anew where the new ones outgrow the cache (longrope)."""
        positions = kwargs.get("position_ids")
        if past_key_values is not None and positions is not None:
            # Behind a prompt of embeddings the tokens alone do not say what to run anew.
            is_whole = positions.shape[1] == input_ids.shape[1]
            new = positions[:, past_key_values.get_seq_length() :]
            if is_whole and past_key_values.get_seq_length() and self.model.outgrows_past(new):
                past_key_values = next_sequence_length = None
        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length,
            past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )

    def mix_heads(self, output: ManticoreModelOutput, keep: slice | Tensor) -> Tensor:
        """Logits of the hybrid at the kept positions: (batch, kept, vocab_size)."""
        model = self.model
        tied_block = model.num_blocks - 1 if model.mixing == "streams" else 0
        active = model.rows.active_head(tied_block)
        if output.streams is not None:
            streams = {k: stream[:, keep] for k, stream in output.streams.items()}
            reads, boundary = output.weights, model.num_blocks
            assert reads is not None, "the backbone gives them along with the streams"
            hidden = {k: read(model, boundary, k, streams, reads) for k in active}
        else:
            kept = output.last_hidden_state[:, keep]
            hidden = {k: kept[..., : model.widths[k]] for k in active}
        if len(active) == 1:
            ((k, state),) = hidden.items()
            return component_logits(self.config.components[k], self.heads[k], state)
        log_row = model.rows.log_head_row(tied_block)
        if output.streams is not None and model.router is not None:
            log_row = log_row + model.router(output.last_hidden_state[:, keep]).float()
        # g: (K,) or, with a router, (batch, kept, K); zero for heads that are not active
        return self._weighted_logits(hidden, log_row.softmax(dim=-1))

    def _weighted_logits(self, hidden: dict[int, Tensor], weights: Tensor) -> Tensor:
        configs = self.config.components
        gates = {k: weights[..., k].unsqueeze(-1) for k in hidden}
        if self._can_join_heads(hidden):
            logits = self._joint_logits(hidden, gates)
            in_float32 = any(has_float32_logits(configs[k]) for k in hidden)
            return logits.float() if in_float32 else logits
        mixed: Any = None
        for k, state in hidden.items():
            logits = component_logits(configs[k], self.heads[k], state)
            gate = gates[k].to(logits.dtype)
            mixed = logits * gate if mixed is None else torch.addcmul(mixed, logits, gate)
        return mixed

    def _joint_logits(self, hidden: dict[int, Tensor], gates: dict[int, Tensor]) -> Tensor:
        """The same sum as one product, so that no head needs (batch, seq, vocab) of its own.

        A gate may as well scale the input of a linear head as its logits.
        """
        states = [(state * gates[k]).to(state.dtype) for k, state in hidden.items()]
        matrix = torch.cat([self.heads[k].weight for k in hidden], dim=-1)  # (V, sum of widths)
        return functional.linear(torch.cat(states, dim=-1), matrix)

    def _can_join_heads(self, hidden: dict[int, Tensor]) -> bool:
        """Whether all heads are plain matrices, and joining them costs less than it saves."""
        tokens = next(iter(hidden.values())).shape[:-1].numel()
        if tokens < sum(state.shape[-1] for state in hidden.values()):
            return False  # copying the matrices would take longer than adding these few logits
        heads = [self.heads[k] for k in hidden]
        same_dtype = len({head.weight.dtype for head in heads if hasattr(head, "weight")}) == 1
        return same_dtype and all(
            has_plain_logits(self.config.components[k], self.heads[k]) for k in hidden
        )

    def get_output_embeddings(self) -> nn.Module:
        """The host component's head."""
        return self.heads[self.config.host]

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the host component's head."""
        self.heads[self.config.host] = new_embeddings


def new_head(config: ManticoreConfig, component: PreTrainedConfig) -> nn.Linear:
    """An output projection of the hybrid's vocabulary for one component."""
    has_bias = has_head_bias(component)
    return nn.Linear(component.hidden_size, config.vocab_size, bias=has_bias)


def tied_keys(hybrid: ManticoreForCausalLM) -> dict[str, str]:
    """Names of heads that are their component's embedding table, for Hugging Face's tying."""
    keys = {}
    for k, (config, component) in enumerate(
        zip(hybrid.config.components, hybrid.model.components, strict=True)
    ):
        if is_tied(config):
            table = component.get_input_embeddings().weight
            name = next(n for n, p in component.named_parameters() if p is table)
            keys[f"heads.{k}.weight"] = f"model.components.{k}.{name}"
    return keys


def kept_positions(logits_to_keep: int | Tensor) -> slice | Tensor:
    """Index for the positions whose logits are wanted."""
    if isinstance(logits_to_keep, int):
        return slice(-logits_to_keep, None) if logits_to_keep else slice(None)
    return logits_to_keep
