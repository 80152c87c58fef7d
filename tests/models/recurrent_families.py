"""Settings of tiny recurrent models and of hybrids that others designed."""

from typing import Any

_ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_DELTA = {"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}


def _sizes(width: int, depth: int, **more: Any) -> dict[str, Any]:
    return {"hidden_size": width, "num_hidden_layers": depth, **more}


def _kinds(pattern: str, **names: str) -> list[str]:
    return [names[letter] for letter in pattern]


def _linear(pattern: str) -> list[str]:
    return _kinds(pattern, L="linear_attention", A="full_attention")


UNCACHED_FAMILIES: dict[str, tuple[dict[str, Any], ...]] = {
    "rwkv": (
        _sizes(32, 4, intermediate_size=48, rescale_every=0),
        _sizes(24, 3, intermediate_size=40, rescale_every=0, tie_word_embeddings=True),
        _sizes(40, 5, rescale_every=0, layer_norm_epsilon=1e-3),
    ),
}
"""Families that refuse padding and a cache."""

RECURRENT_FAMILIES: dict[str, tuple[dict[str, Any], ...]] = {
    "mamba2": (
        _sizes(32, 4, state_size=8, num_heads=4, head_dim=16, n_groups=2, chunk_size=4),
        _sizes(24, 3, state_size=5, num_heads=6, head_dim=8, n_groups=1, chunk_size=8,
               tie_word_embeddings=True, use_conv_bias=False),
        _sizes(40, 5, state_size=16, num_heads=10, head_dim=8, n_groups=5, chunk_size=16,
               expand=2, conv_kernel=3),
    ),
    "falcon_mamba": (
        _sizes(32, 4, state_size=8),
        _sizes(24, 3, state_size=5, conv_kernel=3, tie_word_embeddings=True),
        _sizes(40, 5, state_size=16, time_step_rank=7, residual_in_fp32=False),
    ),
    "jamba": (
        _sizes(32, 4, **_ATTENTION, **_EXPERTS, mamba_d_state=8, mamba_dt_rank=4,
               attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
               expert_layer_offset=1),
        _sizes(24, 3, num_attention_heads=3, num_key_value_heads=1, intermediate_size=40,
               num_experts=1, num_experts_per_tok=1, mamba_d_state=5, mamba_dt_rank=3,
               attn_layer_period=3, attn_layer_offset=2, tie_word_embeddings=True),
        _sizes(40, 5, **_ATTENTION, **_EXPERTS, mamba_d_state=6, mamba_dt_rank=5,
               attn_layer_period=4, attn_layer_offset=0, expert_layer_period=3,
               expert_layer_offset=1),
    ),
    "bamba": (
        _sizes(32, 4, **_ATTENTION, **_MAMBA2, mamba_chunk_size=4, attn_layer_indices=[1, 3]),
        _sizes(32, 3, **_ATTENTION, **_MAMBA2, mamba_chunk_size=8, attn_layer_indices=[0],
               tie_word_embeddings=True),
        _sizes(32, 5, **_ATTENTION, **_MAMBA2, mamba_chunk_size=16, attn_layer_indices=[2]),
    ),
    "granitemoehybrid": (
        _sizes(32, 4, **_ATTENTION, **_MAMBA2, mamba_chunk_size=4, num_local_experts=4,
               num_experts_per_tok=2, shared_intermediate_size=24, embedding_multiplier=3.0,
               logits_scaling=2.0, residual_multiplier=0.7,
               layer_types=_kinds("MAMA", M="mamba", A="attention")),
        _sizes(32, 3, **_ATTENTION, **_MAMBA2, mamba_chunk_size=8, num_local_experts=0,
               num_experts_per_tok=0, shared_intermediate_size=40, embedding_multiplier=0.5,
               layer_types=_kinds("AMM", M="mamba", A="attention"), tie_word_embeddings=True),
        _sizes(32, 5, **_ATTENTION, **_MAMBA2, mamba_chunk_size=4, num_local_experts=3,
               num_experts_per_tok=1, shared_intermediate_size=24, position_embedding_type="rope",
               layer_types=_kinds("MMAMA", M="mamba", A="attention")),
    ),
    "falcon_h1": (
        _sizes(32, 4, **_ATTENTION, **_MAMBA2, mamba_d_ssm=64, mamba_chunk_size=4,
               embedding_multiplier=2.0, lm_head_multiplier=0.5),
        _sizes(32, 3, **_ATTENTION, **_MAMBA2, mamba_d_ssm=64, mamba_chunk_size=8,
               tie_word_embeddings=True, mamba_rms_norm=True),
        _sizes(32, 5, **_ATTENTION, **_MAMBA2, mamba_d_ssm=64, mamba_chunk_size=16,
               key_multiplier=0.6, ssm_in_multiplier=1.3),
    ),
    "nemotron_h": (
        _sizes(32, 4, **_ATTENTION, head_dim=8, mamba_num_heads=4, mamba_head_dim=16,
               ssm_state_size=8, n_groups=1, chunk_size=4,
               layers_block_type=["mamba", "attention", "mlp", "mamba"]),
        _sizes(32, 3, **_ATTENTION, head_dim=16, mamba_num_heads=4, mamba_head_dim=16,
               ssm_state_size=8, n_groups=2, chunk_size=8,
               layers_block_type=["attention", "mamba", "mlp"]),
        _sizes(40, 5, **_ATTENTION, head_dim=10, mamba_num_heads=5, mamba_head_dim=16,
               ssm_state_size=4, n_groups=1, chunk_size=16,
               layers_block_type=["mamba", "mlp", "mamba", "attention", "mlp"]),
    ),
    "lfm2": (
        _sizes(32, 4, **_ATTENTION, layer_types=_kinds("CACA", C="conv", A="full_attention")),
        _sizes(32, 3, **_ATTENTION, layer_types=_kinds("CCA", C="conv", A="full_attention"),
               tie_word_embeddings=True, conv_L_cache=4),
        _sizes(40, 5, **_ATTENTION, layer_types=_kinds("ACCAC", C="conv", A="full_attention"),
               conv_L_cache=2),
    ),
    "qwen3_next": (
        _sizes(32, 4, **_ATTENTION, **_EXPERTS, **_DELTA, linear_num_value_heads=4, head_dim=16,
               moe_intermediate_size=16, shared_expert_intermediate_size=16,
               layer_types=_linear("LLLA")),
        _sizes(32, 3, **_ATTENTION, **_DELTA, linear_num_value_heads=2, head_dim=8, num_experts=0,
               tie_word_embeddings=True, layer_types=_linear("ALL"), mlp_only_layers=[0, 1, 2]),
        _sizes(40, 5, **_ATTENTION, **_EXPERTS, **_DELTA, linear_num_value_heads=4, head_dim=8,
               moe_intermediate_size=24, shared_expert_intermediate_size=8,
               layer_types=_linear("LALLA"), mlp_only_layers=[1]),
    ),
    "olmo_hybrid": (
        _sizes(32, 4, **_ATTENTION, **_DELTA, linear_num_value_heads=2,
               layer_types=_linear("LLLA")),
        _sizes(32, 3, **_ATTENTION, **_DELTA, linear_num_value_heads=4,
               layer_types=_linear("ALL")),
        _sizes(40, 5, **_ATTENTION, **_DELTA, linear_num_value_heads=2,
               layer_types=_linear("LALLA")),
    ),
    "kimi_linear": tuple(
        _sizes(width, len(pattern), num_attention_heads=4, num_key_value_heads=4,
               intermediate_size=48, num_experts=4, num_experts_per_token=2,
               moe_intermediate_size=16, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8,
               v_head_dim=8, linear_head_dim=8, linear_num_heads=heads, head_dim=None,
               layer_types=_linear(pattern),
               mlp_layer_types=["dense"] + ["sparse"] * (len(pattern) - 1))
        for width, pattern, heads in ((32, "LLLA", 4), (24, "ALL", 2), (40, "LALLA", 4))
    ),
}  # fmt: skip
