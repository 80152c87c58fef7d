"""Settings of tiny attention models: grouped heads, windows, tied tables, lists of layer kinds."""

from typing import Any

_SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
          "intermediate_size": 48}  # fmt: skip
_NARROW = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3,
           "intermediate_size": 40}  # fmt: skip
_DEEP = {"hidden_size": 40, "num_hidden_layers": 5, "num_attention_heads": 4,
         "intermediate_size": 56}  # fmt: skip
_NO_DROPOUT = {"attention_dropout": 0.0, "residual_dropout": 0.0}
_PLAIN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
_GROUPED: tuple[dict[str, Any], ...] = (
    {**_SMALL, "num_key_value_heads": 2},
    {**_NARROW, "num_key_value_heads": 1, "tie_word_embeddings": True},
    {**_DEEP, "num_key_value_heads": 4},
)


def _grouped(*changes: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    return tuple({**base, **change} for base, change in zip(_GROUPED, changes, strict=True))


def _window_kinds(depth: int, full_every: int) -> list[str]:
    return [
        "full_attention" if (index + 1) % full_every == 0 else "sliding_attention"
        for index in range(depth)
    ]


def longrope(border: int) -> dict[str, Any]:
    """Settings of a Phi-3 with heads of 8 channels that turns otherwise above `border` tokens."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "short_factor": [1.0, 1.2, 1.5, 2.0],
        "long_factor": [3.0, 5.0, 7.0, 9.0],
    }
    return {"rope_parameters": rope, "original_max_position_embeddings": border}


ATTENTION_FAMILIES: dict[str, tuple[dict[str, Any], ...]] = {
    "mistral": _grouped(
        {"sliding_window": None, "head_dim": 8},
        {"sliding_window": 5, "head_dim": 16},
        {"sliding_window": 9, "head_dim": 10},
    ),
    "qwen2": _grouped(
        {},
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
        {
            "use_sliding_window": True,
            "sliding_window": 7,
            "layer_types": _window_kinds(5, full_every=2),
        },
    ),
    "qwen3": _grouped(
        {"head_dim": 8},
        {"head_dim": 16, "attention_bias": True},
        {"head_dim": 10, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
    ),
    "gemma2": _grouped(
        {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6},
        {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 5},
        {"head_dim": 10, "query_pre_attn_scalar": 10, "sliding_window": 64,
         "final_logit_softcapping": None, "attn_logit_softcapping": None},
    ),
    "gemma3_text": _grouped(
        {"head_dim": 8, "sliding_window": 6, "layer_types": _window_kinds(4, full_every=2)},
        {"head_dim": 16, "sliding_window": 5, "layer_types": _window_kinds(3, full_every=3)},
        {"head_dim": 10, "sliding_window": 8, "layer_types": _window_kinds(5, full_every=4)},
    ),
    "phi": _grouped(
        {"partial_rotary_factor": 0.5},
        {"partial_rotary_factor": 0.5, "tie_word_embeddings": False},
        {"partial_rotary_factor": 1.0, "qk_layernorm": True},
    ),
    "phi3": _grouped(
        {},
        {"tie_word_embeddings": False, **longrope(32)},
        {"partial_rotary_factor": 1.0},
    ),
    "falcon": (
        {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
         "ffn_hidden_size": 48},
        {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "alibi": True,
         "multi_query": False, "bias": True, "parallel_attn": False},
        {"hidden_size": 40, "num_hidden_layers": 5, "num_attention_heads": 4, "num_kv_heads": 2,
         "new_decoder_architecture": True, "tie_word_embeddings": False},
    ),
    "gptj": (
        {"n_embd": 32, "n_layer": 4, "n_head": 4, "rotary_dim": 4},
        {"n_embd": 24, "n_layer": 3, "n_head": 3, "rotary_dim": 8, "n_inner": 40,
         "tie_word_embeddings": True},
        {"n_embd": 40, "n_layer": 5, "n_head": 2, "rotary_dim": 10,
         "activation_function": "gelu"},
    ),
    "codegen": (
        {"n_embd": 32, "n_layer": 4, "n_head": 4, "rotary_dim": 4},
        {"n_embd": 24, "n_layer": 3, "n_head": 4, "rotary_dim": 6, "n_inner": 40,
         "tie_word_embeddings": True},
        {"n_embd": 32, "n_layer": 5, "n_head": 8, "rotary_dim": 2},
    ),
    "olmo2": _grouped(
        {},
        {"attention_bias": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
    ),
    "stablelm": _grouped(
        {"partial_rotary_factor": 0.25, "use_qkv_bias": True},
        {"partial_rotary_factor": 0.5, "qk_layernorm": True},
        {"partial_rotary_factor": 1.0, "use_parallel_residual": True},
    ),
    "smollm3": _grouped(
        {"no_rope_layers": [1, 1, 0, 1]},
        {"use_sliding_window": True, "sliding_window": 5, "no_rope_layers": [0, 1, 1],
         "layer_types": _window_kinds(3, full_every=2)},
        {"no_rope_layer_interval": 2, "attention_bias": True, "mlp_bias": True},
    ),
    "glm": _grouped(
        {"head_dim": 8}, {"head_dim": 16, "attention_bias": False}, {"head_dim": 10}
    ),
    "glm4": _grouped(
        {"head_dim": 8}, {"head_dim": 16, "attention_bias": False}, {"head_dim": 10}
    ),
    "ernie4_5": _grouped({"head_dim": 8}, {"head_dim": 16, "use_bias": True}, {"head_dim": 10}),
    "seed_oss": _grouped(
        {"head_dim": 8, **_NO_DROPOUT},
        {"head_dim": 16, "attention_out_bias": True, "mlp_bias": True, **_NO_DROPOUT},
        {"head_dim": 10, "attention_bias": False, **_NO_DROPOUT},
    ),
    "apertus": _grouped(
        _PLAIN_ROPE,
        {"attention_bias": True, **_PLAIN_ROPE},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0,
                             "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 16}},
    ),
    "arcee": _grouped(
        {"head_dim": 8},
        {"head_dim": 16, "attention_bias": True, "mlp_bias": True},
        {"head_dim": 10, "hidden_act": "gelu"},
    ),
    "helium": _grouped(
        {"head_dim": 8}, {"head_dim": 8, "attention_bias": True, "mlp_bias": True}, {"head_dim": 10}
    ),
    "olmo": _grouped({}, {"clip_qkv": 0.5, "attention_bias": True}, {"clip_qkv": 1.0}),
    "gemma": _grouped(
        {"head_dim": 8}, {"head_dim": 16, "tie_word_embeddings": False}, {"head_dim": 10}
    ),
    "starcoder2": _grouped(
        _NO_DROPOUT,
        {"sliding_window": 5, "use_bias": False, "tie_word_embeddings": False, **_NO_DROPOUT},
        {"sliding_window": 9, **_NO_DROPOUT},
    ),
    "granite": _grouped(
        {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.7,
         "attention_multiplier": 0.3},
        {"embedding_multiplier": 0.5, "attention_multiplier": 0.1, "attention_bias": True,
         "mlp_bias": True},
        {"logits_scaling": 0.5, "residual_multiplier": 0.4, "attention_multiplier": 0.2},
    ),
    "olmo3": _grouped(
        {"sliding_window": 6, "layer_types": _window_kinds(4, full_every=2)},
        {"sliding_window": 5, "layer_types": _window_kinds(3, full_every=3),
         "attention_bias": True},
        {"sliding_window": 8, "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}}},
    ),
    "exaone4": _grouped(
        {"sliding_window": 6, "layer_types": _window_kinds(4, full_every=2)},
        {"sliding_window": 5, "sliding_window_pattern": 3},
        {"sliding_window": None, "layer_types": ["full_attention"] * 5},
    ),
    "gpt_bigcode": (
        {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_inner": 48},
        {"n_embd": 24, "n_layer": 3, "n_head": 3, "tie_word_embeddings": False},
        {"n_embd": 40, "n_layer": 5, "n_head": 4, "multi_query": False,
         "scale_attn_weights": False},
    ),
    "cohere2": _grouped(
        {"sliding_window": 6, "logit_scale": 0.8, "layer_types": _window_kinds(4, full_every=2)},
        {"sliding_window": 5, "logit_scale": 1.5, "attention_bias": True,
         "layer_types": _window_kinds(3, full_every=3)},
        {"sliding_window": 8, "logit_scale": 1.0, "tie_word_embeddings": False},
    ),
    "cohere": _grouped(
        {"logit_scale": 0.8},
        {"logit_scale": 1.5, "use_qk_norm": True},
        {"logit_scale": 1.0, "attention_bias": True, "tie_word_embeddings": False},
    ),
    "opt": (
        {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "ffn_dim": 48,
         "dropout": 0.0},
        {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "ffn_dim": 40,
         "dropout": 0.0, "do_layer_norm_before": False, "tie_word_embeddings": False},
        {"hidden_size": 40, "num_hidden_layers": 5, "num_attention_heads": 5, "ffn_dim": 56,
         "dropout": 0.0, "enable_bias": False, "activation_function": "gelu"},
    ),
}  # fmt: skip
