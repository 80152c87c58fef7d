"""From a component's final hidden states to its logits, as in its own model.

Shapes: B batch, T time, d the component's width, V its vocabulary.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from manticore.models.supported import check_supported


def component_logits(config: PreTrainedConfig, head: nn.Module, hidden: Tensor) -> Tensor:
    """Logits (B, T, V) of final hidden states (B, T, d), as in the component's own model."""
    logits = check_supported(config).logits(head, hidden)
    scale, cap = _logit_scale(config), getattr(config, "final_logit_softcapping", None)
    if scale != 1.0:
        logits = logits * scale
    return logits if cap is None else torch.tanh(logits / cap) * cap


def has_plain_logits(config: PreTrainedConfig, head: nn.Module) -> bool:
    """Whether logits are `hidden @ head.weight.T` and nothing more (but for their dtype)."""
    check_supported(config)
    is_capped = getattr(config, "final_logit_softcapping", None) is not None
    is_plain = not is_capped and _logit_scale(config) == 1.0
    return is_plain and is_plain_linear(head) and head.bias is None


def has_float32_logits(config: PreTrainedConfig) -> bool:
    """Whether the component's own model casts its logits to float32."""
    return check_supported(config).float32_logits


def has_head_bias(config: PreTrainedConfig) -> bool:
    """Whether the language model head of this model has a bias."""
    return check_supported(config).head_bias or bool(getattr(config, "head_bias", False))


def is_plain_linear(module: nn.Module) -> bool:
    """Whether calling this module is nothing but its matrix and bias.

    Not so with an adapter, quantized weights, a parametrization, or hooks (which may have to
    bring the weights first).
    """
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module) is nn.Linear and not hooked


def _logit_scale(config: PreTrainedConfig) -> float:
    """What the family multiplies its logits by (Cohere, Falcon-H1, Granite)."""
    if config.model_type in ("granite", "granitemoe", "granitemoehybrid"):
        return 1.0 / config.logits_scaling
    if config.model_type in ("cohere", "cohere2"):
        return config.logit_scale
    return getattr(config, "lm_head_multiplier", 1.0)
