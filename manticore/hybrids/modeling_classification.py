"""Hybrids that classify sequences or tokens."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast, TokenClassifierOutput

from manticore.hybrids.configuration_manticore import ManticoreConfig
from manticore.hybrids.modeling_backbone import ManticoreModel, ManticoreModelOutput
from manticore.hybrids.modeling_base import ManticorePreTrainedModel
from manticore.models.last_token import last_real


class _Classifier(ManticorePreTrainedModel):
    """Backbone, dropout and a linear layer on all final streams side by side."""

    def __init__(
        self, config: ManticoreConfig, components: Sequence[PreTrainedModel] | None = None, **_: Any
    ) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = ManticoreModel(config, components)
        self.dropout = nn.Dropout(getattr(config, "classifier_dropout", None) or 0.0)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @classmethod
    def from_components(cls, components: Sequence[Any], **options: Any) -> "_Classifier":
        """Build a classifier from pretrained language models; options as for causal models.

        `num_labels`, `id2label`, `label2id` and `problem_type` go to the config.
        """
        from manticore.hybrids.construction import from_components

        return from_components(cls, components, **options)

    def _scores(self, output: ManticoreModelOutput) -> Tensor:
        return self.score(self.dropout(output.last_hidden_state))


class ManticoreForSequenceClassification(_Classifier):
    """One label for each sequence, read at its last token that is not padding."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Classify; `logits` is (batch, num_labels).

        Args:
            attention_mask: (batch, seq); without it, padding is found by `pad_token_id`.
            labels: (batch,) class indices, or floats for regression and multi-label.
        """
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=False,
        )
        pad = self.config.pad_token_id
        if attention_mask is None and input_ids is not None and pad is not None:
            attention_mask = input_ids != pad
        logits = last_real(self._scores(output), attention_mask)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                labels=labels, logits=logits, pooled_logits=logits, config=self.config, **kwargs
            )
        return SequenceClassifierOutputWithPast(loss=loss, logits=logits)


class ManticoreForTokenClassification(_Classifier):
    """One label for each token."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Classify; `logits` is (batch, seq, num_labels), labels of -100 are not scored."""
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=False,
        )
        logits = self._scores(output)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, config=self.config, **kwargs)
        return TokenClassifierOutput(loss=loss, logits=logits)
