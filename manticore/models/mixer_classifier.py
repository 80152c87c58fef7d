"""A classifier of sequences built from mixers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from manticore.models.configuration_mixer_lm import MixerLMConfig
from manticore.models.last_token import last_real
from manticore.models.mixer_parts import linear
from manticore.models.modeling_mixer_lm import MixerModel, MixerPreTrainedModel


class MixerForSequenceClassification(MixerPreTrainedModel):
    """Classes from the mean over a sequence, or from its last token.

    The mean is what Long Range Arena's models use; causal language models use the last token.
    """

    def __init__(self, config: MixerLMConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(config)
        self.pooling = str(getattr(config, "pooling", "last"))
        if self.pooling not in ("last", "mean"):
            raise ValueError(f"pooling={self.pooling!r} is not known. Known: last, mean.")
        self.model = MixerModel(config, generator)
        self.score = linear(config.hidden_size, config.num_labels, generator)
        self.finish()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify sequences.

        Args:
            attention_mask: (batch, seq), 1 for tokens and 0 for padding on either side.
            labels: (batch,) classes.

        Returns:
            `logits` is (batch, num_labels); `loss` in nats.
        """
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=False,
        )
        logits = self.score(self._pool(output.last_hidden_state, attention_mask))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _pool(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        if self.pooling == "last":
            return last_real(hidden, attention_mask)
        if attention_mask is None:
            return hidden.mean(dim=1)
        mask = attention_mask.to(hidden.dtype).unsqueeze(-1)
        # Where, not times: what stands at padding is arbitrary.
        return torch.where(mask > 0, hidden, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
