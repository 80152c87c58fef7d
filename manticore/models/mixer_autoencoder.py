"""The autoencoder of MAD's compression task: a sequence through one vector and back.

    z = h_L at the last position      logits_t = decode(z + position_t), t = 1..T

with the mixers as encoder and, at each position for itself, decode = norm, map, GELU, norm, map,
GELU, norm, map to the vocabulary (Poli et al., 2024, arXiv:2403.17844, appendix B, as in
athms/mad-lab: the encoder has no final norm, the decoder no residual lines).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutput

from manticore.mixers.implicit_filter import ImplicitFilter
from manticore.mixers.mamba import Mamba
from manticore.models.configuration_mixer_lm import MixerLMConfig
from manticore.models.last_token import last_real
from manticore.models.mixer_parts import SinusoidalPositions, linear, new_norm
from manticore.models.modeling_mixer_lm import MixerModel, MixerPreTrainedModel


class MixerAutoEncoder(MixerPreTrainedModel):
    """Mixers that must put a whole sequence into their last position, and a decoder for it."""

    def __init__(self, config: MixerLMConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(config)
        self.model = MixerModel(config, generator)
        self.model.norm = nn.Identity()
        self.decoder_positions = SinusoidalPositions(config.hidden_size)
        width = config.hidden_size
        self.decoder = nn.Sequential(
            new_norm(config),
            linear(width, width, generator),
            nn.GELU(),
            new_norm(config),
            linear(width, width, generator),
            nn.GELU(),
            new_norm(config),
            linear(width, config.vocab_size, generator),
        )
        if config.compat == "mad-lab":
            self._draw_like_mad_lab(generator)
        self.finish()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Give every token back from the vector at the last position.

        Args:
            input_ids: (batch, seq).
            attention_mask: (batch, seq), 1 for tokens and 0 for padding; None: no padding.
            labels: (batch, seq) tokens to give back, -100 is not scored; not shifted.

        Returns:
            `logits` is (batch, seq, vocab_size); `loss` in nats per token.
        """
        encoded = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        code = last_real(encoded.last_hidden_state, attention_mask).unsqueeze(1)  # (B, 1, D)
        positions = torch.arange(input_ids.shape[1], device=code.device).unsqueeze(0)
        logits = self.decoder(code + self.decoder_positions(positions).to(code.dtype))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def _draw_like_mad_lab(self, generator: torch.Generator | None) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear) and not module.weight.is_meta:
                init.TORCH_INIT_FUNCTIONS["normal_"](
                    module.weight, std=self.config.initializer_range, generator=generator
                )
                if module.bias is not None:
                    module.bias.zero_()
            # Biases of maps there, which ours keep by themselves.
            elif isinstance(module, Mamba):
                module.step_bias.zero_()
            elif isinstance(module, ImplicitFilter):
                for offset in module.offsets:
                    offset.zero_()
