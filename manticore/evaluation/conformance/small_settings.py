"""Settings of the doctor's small models: what families call their sizes and their habits."""

from __future__ import annotations

from typing import Any

# Sizes by the names that most families use; each family takes those that its config has.
COMMON: dict[str, Any] = {
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
_EVERY_OTHER = ["sliding_attention", "full_attention"] * 2
_BLOCK = {
    "hidden_size": 64,
    "n_layers": 4,
    "vocab_size": 101,
    "topology": "sequential",
    "norm": "rms",
    "norm_eps": 1e-6,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 16,
    "qkv_bias": True,
    "output_bias": False,
    "rotary_frequencies": [1.0, 0.1, 0.01, 0.001],
    "score_scales": [0.25] * 4,
    "windows": [None, None, 8, None],
    "channel_mixer": "gated",
    "intermediate_size": 96,
    "activation": "silu",
    "mlp_bias": False,
    "tied": False,
}
# Turns by its long factors above 16 tokens, so that the doctor's rows of 20 cross the border.
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
}
_THREE_TO_ONE = ["linear_attention"] * 3 + ["full_attention"]

_PLAIN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}

SPECIAL: dict[str, dict[str, Any]] = {
    "apertus": _PLAIN_ROPE,
    "bamba": {**_MAMBA2, "mamba_chunk_size": 8, "attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 8},
    "cohere2": {"sliding_window": 8, "layer_types": _EVERY_OTHER},
    "exaone4": {"sliding_window": 8, "layer_types": _EVERY_OTHER},
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True, "ffn_hidden_size": 96},
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 128, "mamba_chunk_size": 8},
    "falcon_mamba": {"state_size": 8, "intermediate_size": 128},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 16},
    "gemma3_text": {
        "sliding_window": 8,
        "layer_types": _EVERY_OTHER,
    },
    "gpt_neo": {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 8},
    "granite": {
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
    },
    "granitemoe": {
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
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
    "manticore_converted": {
        "block": _BLOCK,
        "layers": ["attention", "retention", "gated-deltanet", "linear-attention"],
    },
    "manticore_mixers": {
        "layers": [
            {"mixer": "attention", "n_heads": 4, "n_kv_heads": 2},
            "swiglu",
            "mamba",
            "rwkv7",
        ],
    },
    "mamba": {"state_size": 8, "intermediate_size": 128},
    "mamba2": {"state_size": 16, "num_heads": 8, "n_groups": 2, "chunk_size": 8},
    "minimax": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "block_size": 8,
    },
    "mistral": {"sliding_window": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "mlp", "mamba"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "olmo3": {"sliding_window": 8, "layer_types": _EVERY_OTHER},
    "olmo_hybrid": {**_DELTA, "linear_num_value_heads": 2, "layer_types": _THREE_TO_ONE},
    "olmoe": _EXPERTS,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "qwen3_moe": {**_EXPERTS, "moe_intermediate_size": 32, "mlp_only_layers": [1]},
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
    # Weights are halved every 6 layers in published models; here so that 4 layers show it.
    "rwkv": {"attention_hidden_size": 64, "context_length": 128, "rescale_every": 2},
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
# What else differs in the second and the third configuration.
HABITS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "apertus": ({"attention_bias": True}, {"hidden_act": "relu2"}),
    "arcee": ({"attention_bias": True, "mlp_bias": True}, {"hidden_act": "gelu"}),
    "bamba": ({"attn_layer_indices": [0, 2]}, {"attn_layer_indices": [2]}),
    "bloom": ({"apply_residual_connection_post_layernorm": True}, {}),
    "cohere": ({"logit_scale": 1.5, "use_qk_norm": True}, {"attention_bias": True}),
    "cohere2": ({"logit_scale": 1.5}, {"attention_bias": True}),
    "codegen": ({"rotary_dim": 16}, {"n_inner": 80}),
    "ernie4_5": ({"use_bias": True}, {"head_dim": 24}),
    "exaone4": (
        {"sliding_window_pattern": 2},
        {"sliding_window": None, "layer_types": ["full_attention"] * 4},
    ),
    "falcon_h1": ({"mamba_n_groups": 2}, {"mamba_norm_before_gate": False, "mamba_rms_norm": True}),
    "falcon_mamba": ({"use_conv_bias": False}, {"conv_kernel": 3}),
    "falcon": (
        {"num_kv_heads": 1},
        {"num_kv_heads": 4, "new_decoder_architecture": False, "alibi": True, "bias": True},
    ),
    "gemma": ({}, {"head_dim": 24}),
    "glm": ({"attention_bias": False}, {"head_dim": 24}),
    "glm4": ({"attention_bias": False}, {"head_dim": 24}),
    "gpt2": ({"scale_attn_by_inverse_layer_idx": True}, {"n_inner": 80}),
    "gpt_bigcode": ({"multi_query": False}, {"scale_attn_weights": False, "n_inner": 80}),
    "gpt_neo": (
        {"attention_types": [[["local"], 3], [["global"], 1]], "window_size": 5},
        {"attention_types": [[["global"], 4]]},
    ),
    "gpt_neox": ({"use_parallel_residual": False}, {"rotary_pct": 1.0, "attention_bias": False}),
    "gptj": ({"rotary_dim": 16}, {"n_inner": 80}),
    "granite": ({"attention_bias": True}, {"mlp_bias": True, "embedding_multiplier": 0.5}),
    "granitemoe": ({"attention_bias": True}, {"num_experts_per_tok": 3}),
    "helium": ({"attention_bias": True, "mlp_bias": True}, {}),
    "jamba": ({"attn_layer_offset": 0}, {"attn_layer_period": 4}),
    "kimi_linear": ({"num_key_value_heads": 4}, {}),
    "llama": ({"attention_bias": True, "mlp_bias": True}, {"head_dim": 24}),
    "mamba": ({"use_conv_bias": False}, {"conv_kernel": 3}),
    "mamba2": ({"n_groups": 1}, {"n_groups": 8}),
    "manticore_converted": (
        {
            "block": {**_BLOCK, "n_kv_heads": 1, "tied": True, "topology": "parallel"},
            "layers": ["mamba2-heads", "attention", "deltanet", "rwkv6"],
        },
        {
            "block": {**_BLOCK, "n_kv_heads": 4, "norm": "layer", "learned_positions": 128},
            "layers": ["hyena", "gated-linear-attention", "attention", "sliding-attention"],
        },
    ),
    "manticore_mixers": (
        {
            "norm": "layer",
            "positions": "sinusoidal",
            "layers": [
                {"mixer": "deltanet", "n_heads": 2},
                {"mixer": "attention", "n_heads": 4, "n_kv_heads": 1},
                "hyena",
                "rwkv6-channel",
            ],
        },
        {
            "head_bias": False,
            "positions": "learned",
            "layers": [
                "mamba2",
                {"mixer": "retention", "n_heads": 4},
                {"mixer": "sliding-attention", "window": 5},
                {"mixer": "gated-linear-attention", "n_heads": 4},
            ],
        },
    ),
    "mistral": ({"sliding_window": 5}, {"sliding_window": None}),
    "mixtral": ({"sliding_window": 6}, {"num_experts_per_tok": 3}),
    "olmo": ({"clip_qkv": 0.5}, {"attention_bias": True}),
    "olmo3": ({"attention_bias": True}, {"sliding_window": 5}),
    "olmoe": ({"clip_qkv": 0.5}, {"norm_topk_prob": True}),
    "opt": ({"do_layer_norm_before": False}, {"enable_bias": False}),
    "phi": ({}, {"partial_rotary_factor": 1.0, "qk_layernorm": True}),
    "phi3": (
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 16},
    ),
    "qwen2": (
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
        {"use_sliding_window": True, "sliding_window": 7, "layer_types": _EVERY_OTHER},
    ),
    "qwen3_moe": (
        {"use_sliding_window": True, "sliding_window": 6},
        {"decoder_sparse_step": 2, "norm_topk_prob": True},
    ),
    "rwkv": ({}, {"intermediate_size": 160}),
    "seed_oss": ({"attention_out_bias": True, "mlp_bias": True}, {"attention_bias": False}),
    "smollm3": (
        {"no_rope_layers": [0, 1, 1, 0], "attention_bias": True},
        {"use_sliding_window": True, "sliding_window": 6, "layer_types": _EVERY_OTHER},
    ),
    "stablelm": (
        {"partial_rotary_factor": 0.5, "qk_layernorm": True, "use_qkv_bias": True},
        {"partial_rotary_factor": 1.0, "use_parallel_residual": True},
    ),
    "starcoder2": ({"sliding_window": 6}, {"use_bias": False}),
    "xlstm": ({}, {"num_heads": 1}),
    "zamba2": (
        {"layers_block_type": ["hybrid", "mamba"] * 2, "hybrid_layer_ids": [0, 2]},
        {"num_mem_blocks": 2},
    ),
}
