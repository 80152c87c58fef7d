"""Tiny models with random weights of the families of hybrids, to look at their structure."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from manticore.models.weight_files import first_line
from manticore.seeds import derive_seed

_ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
_MAMBA2 = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}

_SIZES: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8},
    "falcon_mamba": {"state_size": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "jamba": {
        **_ATTENTION,
        **_EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "use_mamba_kernels": False,
    },
    "bamba": {**_ATTENTION, **_MAMBA2, "attn_layer_indices": [1, 3]},
    "granitemoehybrid": {
        **_ATTENTION,
        **_MAMBA2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 24,
        "layer_types": ["mamba", "attention", "mamba", "attention"],
    },
    "falcon_h1": {**_ATTENTION, **_MAMBA2, "mamba_d_ssm": 64, "head_dim": 16},
    "nemotron_h": {
        **_ATTENTION,
        "head_dim": 16,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "layers_block_type": ["mamba", "attention", "mlp", "mamba"],
    },
    "qwen3_next": {
        **_ATTENTION,
        **_EXPERTS,
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    },
}
_USUAL = {**_ATTENTION}


def random_model(family: str) -> PreTrainedModel:
    """A causal language model of a family with four layers of width 32 and random weights.

    Args:
        family: a `model_type` of transformers. Families beyond the table get the usual names of
            sizes; one that needs others raises.
    """
    if family not in CONFIG_MAPPING:
        raise ValueError(f"Unknown family {family!r}: it is no model_type of transformers.")
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "vocab_size": 64}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    try:
        config = CONFIG_MAPPING[family](**sizes, **special, **_SIZES.get(family, _USUAL))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(0, "random model", family))
            return AutoModelForCausalLM.from_config(config).eval()
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"No tiny {family} can be made from the usual sizes: {first_line(error)}. Give the "
            "folder of a causal language model instead; its weights are not read."
        ) from error
