"""A small random model of any family, so that a family can be examined without its weights."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from manticore.seeds import torch_generator

# Sizes by the names that most families use; each family takes those that its config has.
_COMMON: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_DELTA = {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2}
_THREE_TO_ONE = ["linear_attention"] * 3 + ["full_attention"]

_SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA2, "mamba_chunk_size": 8, "attn_layer_indices": [1, 3]},
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True, "ffn_hidden_size": 96},
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 128, "mamba_chunk_size": 8},
    "falcon_mamba": {"state_size": 8, "intermediate_size": 128},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 16},
    "gemma3_text": {
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gpt_neo": {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {
        **_MAMBA2,
        "mamba_chunk_size": 8,
        "layer_types": ["mamba", "attention"] * 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 64,
    },
    "jamba": {
        **_EXPERTS,
        "mamba_d_state": 8,
        "mamba_dt_rank": 8,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "kimi_linear": {
        "num_experts": 4,
        "num_experts_per_token": 2,
        "moe_intermediate_size": 32,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": None,
        "layer_types": _THREE_TO_ONE,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba": {"state_size": 8, "intermediate_size": 128},
    "mamba2": {"state_size": 16, "num_heads": 8, "n_groups": 2, "chunk_size": 8},
    "minimax": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "block_size": 8,
    },
    "mistral": {"sliding_window": 8},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "mlp", "mamba"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "olmo_hybrid": {**_DELTA, "linear_num_value_heads": 2, "layer_types": _THREE_TO_ONE},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "qwen3_next": {
        **_DELTA,
        **_EXPERTS,
        "linear_num_value_heads": 4,
        "layer_types": _THREE_TO_ONE,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "recurrent_gemma": {
        "lru_width": 64,
        "attention_window_size": 8,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "rwkv": {"attention_hidden_size": 64, "context_length": 128},
    # Its query width is rounded up to 64 for each head, and its state is not.
    "xlstm": {"hidden_size": 256, "embedding_dim": 256, "num_heads": 2, "num_blocks": 4},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
        "mamba_d_state": 16,
        "n_mamba_heads": 8,
        "mamba_headdim": 16,
        "mamba_ngroups": 1,
        "chunk_size": 8,
        "num_mem_blocks": 1,
        "adapter_rank": 4,
    },
}
FAMILIES = tuple(
    sorted({*_SPECIAL, "gpt2", "gpt_neox", "llama", "olmo2", "phi", "phi3", "qwen2", "qwen3"})
)
"""Families whose small model is known to be built; others may work."""


def small_config(model_type: str, **changes: Any) -> Any:
    """A config of this family, a few hundred thousand parameters large.

    Raises:
        ValueError: transformers has no causal language model of this name.
    """
    known = [name for name, config in CONFIG_MAPPING.items() if config in _causal_configs()]
    if model_type not in known:
        close = difflib.get_close_matches(model_type, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"transformers has no causal language model family {model_type!r}.{hint} "
            f"Examined here: {', '.join(FAMILIES)}."
        )
    config_class = CONFIG_MAPPING[model_type]
    special = {**_SPECIAL.get(model_type, {}), **changes}
    fields = config_class()
    sizes = {key: value for key, value in _COMMON.items() if _is_settable(fields, key)}
    return config_class(**{**sizes, **special})


def small_model(model_type: str, seed: int = 0, **changes: Any) -> Any:
    """A random model of this family in evaluation mode, float32.

    Every weight gets noise, because a norm at one and a bias at zero hide what is wrong with them.
    """
    config = small_config(model_type, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # transformers initialises from the global generator
        model = AutoModelForCausalLM.from_config(config).float()
    generator = torch_generator(seed, "small model", model_type)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def _causal_configs() -> set[type]:
    return set(MODEL_FOR_CAUSAL_LM_MAPPING.keys())


def _is_settable(config: Any, name: str) -> bool:
    """Whether the config has this field, and not as something that it derives."""
    return hasattr(config, name) and not isinstance(getattr(type(config), name, None), property)
