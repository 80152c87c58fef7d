"""Settings of tiny mixtures of experts: windows, tied tables, layers without experts."""

from typing import Any


def _sizes(width: int, depth: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": width + 16,
        **more,
    }


EXPERT_FAMILIES: dict[str, tuple[dict[str, Any], ...]] = {
    "mixtral": (
        _sizes(32, 4, 4, 2, num_local_experts=4, num_experts_per_tok=2),
        _sizes(24, 3, 3, 1, num_local_experts=3, num_experts_per_tok=1, sliding_window=5,
               head_dim=16, tie_word_embeddings=True),
        _sizes(40, 5, 4, 4, num_local_experts=5, num_experts_per_tok=3, sliding_window=9),
    ),
    "qwen3_moe": (
        _sizes(32, 4, 4, 2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
               head_dim=8),
        _sizes(24, 3, 3, 1, num_experts=3, num_experts_per_tok=1, moe_intermediate_size=24,
               head_dim=16, use_sliding_window=True, sliding_window=5, tie_word_embeddings=True),
        _sizes(40, 5, 4, 4, num_experts=5, num_experts_per_tok=3, moe_intermediate_size=8,
               head_dim=10, decoder_sparse_step=2, mlp_only_layers=[3], norm_topk_prob=True),
    ),
    "olmoe": (
        _sizes(32, 4, 4, 2, num_experts=4, num_experts_per_tok=2),
        _sizes(24, 3, 3, 1, num_experts=3, num_experts_per_tok=1, clip_qkv=0.5,
               tie_word_embeddings=True),
        _sizes(40, 5, 4, 4, num_experts=5, num_experts_per_tok=3, norm_topk_prob=True),
    ),
    "granitemoe": (
        _sizes(32, 4, 4, 2, num_local_experts=4, num_experts_per_tok=2, embedding_multiplier=3.0,
               logits_scaling=2.0, residual_multiplier=0.7, attention_multiplier=0.3),
        _sizes(24, 3, 3, 1, num_local_experts=3, num_experts_per_tok=1, embedding_multiplier=0.5,
               attention_multiplier=0.1, tie_word_embeddings=True),
        _sizes(40, 5, 4, 4, num_local_experts=5, num_experts_per_tok=3, attention_multiplier=0.2,
               attention_bias=True),
    ),
}  # fmt: skip
