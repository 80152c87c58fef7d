"""Tiny random models of every family, for tests: three awkward configurations each."""

from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

import manticore  # noqa: F401 (its own model families are then known to transformers)
from tests.models.attention_families import ATTENTION_FAMILIES
from tests.models.expert_families import EXPERT_FAMILIES
from tests.models.recurrent_families import RECURRENT_FAMILIES, UNCACHED_FAMILIES

VARIANTS = (0, 1, 2)
MAX_POSITIONS = 64

_SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "gpt_neox": (
        {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
         "intermediate_size": 64, "rotary_pct": 0.25},
        {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
         "intermediate_size": 40, "rotary_pct": 0.5, "use_parallel_residual": False},
        {"hidden_size": 40, "num_hidden_layers": 5, "num_attention_heads": 5,
         "intermediate_size": 72, "rotary_pct": 1.0, "tie_word_embeddings": True,
         "attention_bias": False},
    ),
    "llama": (
        {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 48},
        {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3,
         "num_key_value_heads": 1, "intermediate_size": 40, "tie_word_embeddings": True,
         "attention_bias": True, "mlp_bias": True,
         "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        {"hidden_size": 40, "num_hidden_layers": 5, "num_attention_heads": 4,
         "num_key_value_heads": 4, "head_dim": 16, "intermediate_size": 56},
    ),
    "gpt2": (
        {"n_embd": 32, "n_layer": 4, "n_head": 4, "scale_attn_by_inverse_layer_idx": True},
        {"n_embd": 24, "n_layer": 3, "n_head": 3, "n_inner": 40, "tie_word_embeddings": False},
        {"n_embd": 40, "n_layer": 5, "n_head": 2, "scale_attn_by_inverse_layer_idx": True,
         "reorder_and_upcast_attn": True},
    ),
    "gpt_neo": (
        {"hidden_size": 32, "num_layers": 4, "num_heads": 4,
         "attention_types": [[["global", "local"], 2]], "window_size": 5},
        {"hidden_size": 24, "num_layers": 3, "num_heads": 2, "intermediate_size": 40,
         "attention_types": [[["local"], 2], [["global"], 1]], "window_size": 3,
         "tie_word_embeddings": False},
        {"hidden_size": 40, "num_layers": 5, "num_heads": 5,
         "attention_types": [[["global"], 2], [["local"], 3]], "window_size": 8},
    ),
    "mamba": (
        {"hidden_size": 32, "num_hidden_layers": 4, "state_size": 8},
        {"hidden_size": 24, "num_hidden_layers": 3, "state_size": 5, "conv_kernel": 3,
         "expand": 3, "tie_word_embeddings": False, "use_conv_bias": False},
        {"hidden_size": 40, "num_hidden_layers": 5, "state_size": 16, "time_step_rank": 7,
         "residual_in_fp32": False},
    ),
    "manticore_mixers": (
        {"d_model": 32, "layers": [
            {"mixer": "mh-attention", "n_heads": 4}, "rwkv6-channel",
            {"mixer": "deltanet", "n_heads": 4}, "rwkv7"]},
        {"d_model": 24, "norm": "layer", "tie_word_embeddings": True, "positions": "sinusoidal",
         "layers": [{"mixer": "deltanet", "n_heads": 2}, {"mixer": "sliding-attention",
          "window": 5}, {"mixer": "gated-deltanet", "n_heads": 4}]},
        {"d_model": 40, "positions": "learned", "head_bias": False, "layers": [
            {"mixer": "retention", "n_heads": 4}, {"mixer": "linear-attention"},
            {"mixer": "attention", "n_heads": 5, "n_kv_heads": 1, "rotary_fraction": 0.5},
            {"mixer": "gated-deltanet", "n_heads": 2}, {"mixer": "rwkv5", "head_size": 8}]},
    ),
}  # fmt: skip
_SETTINGS |= ATTENTION_FAMILIES | EXPERT_FAMILIES | RECURRENT_FAMILIES | UNCACHED_FAMILIES
FAMILY_NAMES = tuple(_SETTINGS)
ALL_TINY = [(family, variant) for family in FAMILY_NAMES for variant in VARIANTS]


def tiny_config(family: str, variant: int = 0, **overrides: Any) -> PreTrainedConfig:
    """A small config without dropout; the variants differ in width, depth and habits."""
    shared: dict[str, Any] = {
        "vocab_size": 61 + variant,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    if family == "manticore_mixers":
        learned = _SETTINGS[family][variant].get("positions") == "learned"
        shared["max_position_embeddings"] = MAX_POSITIONS if learned else None
    elif family not in ("mamba", "rwkv"):
        shared["max_position_embeddings"] = MAX_POSITIONS
    if family in ("gpt2", "gpt_bigcode"):
        shared |= {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    return CONFIG_MAPPING[family](**{**shared, **_SETTINGS[family][variant], **overrides})


def tiny(family: str, seed: int = 0, variant: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random causal language model in eval mode, with weights large enough to show errors."""
    config = tiny_config(family, variant, **overrides)
    with torch.random.fork_rng():
        torch.manual_seed(1_000 * seed + variant)  # time steps and the like start at random
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    generator = torch.Generator().manual_seed(1_000 * seed + variant)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _randomise(name, parameter, generator)
    return model.eval()


def _randomise(name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    noise = torch.randn(parameter.shape, generator=generator)
    if ".mixer." in name and "model.layers" in name:
        parameter.add_(0.02 * noise)  # mixers know better how their weights start
    elif name.endswith("A_log") and parameter.ndim == 2:
        states = torch.arange(1, parameter.shape[1] + 1, dtype=torch.float32)
        parameter.copy_(torch.log(states) + 0.1 * noise)
    elif name.endswith(("dt_proj.bias", "mixer.D")):
        parameter.copy_(-2 + noise if "dt_proj" in name else 1 + 0.3 * noise)
    elif parameter.ndim == 1:  # norms start at one, biases at zero
        parameter.copy_(parameter + 0.3 * noise)
    elif "conv1d" in name or any(part in name for part in ("wte", "wpe", "embed", "lm_head")):
        parameter.copy_(0.25 * noise)
    else:
        # Conv1D of GPT-2 keeps (in, out), everything else (out, in).
        transposed = any(part in name for part in (".c_attn.", ".c_fc.", ".c_proj."))
        fan_in = parameter.shape[0] if transposed else parameter.shape[1]
        # Larger weights amplify float32 rounding, which is not the same from one call to the next.
        parameter.copy_(0.8 * noise / fan_in**0.5)


def token_ids(model: PreTrainedModel, batch: int, seq_len: int, seed: int = 0) -> torch.Tensor:
    """Random token ids (batch, seq_len) that never are the padding token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, model.config.vocab_size, (batch, seq_len), generator=generator)
