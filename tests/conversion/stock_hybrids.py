"""Converted hybrids that leave as a class of transformers: three of each class."""

from __future__ import annotations

from typing import Any

from manticore.conversion.modeling_converted import ConvertedForCausalLM
from tests.conversion.models import converted
from tests.models.tiny import tiny

A = "attention"
BESIDE = {"mixer": "attention-mamba2", "mamba_head_dim": 8, "mamba_d_state": 6}
BESIDE_GROUPS = {**BESIDE, "mamba_n_groups": 2, "mamba_conv_size": 3}
UNTURNED = {"mixer": "attention", "rotary": False}
M2 = {"mixer": "mamba2", "head_dim": 8, "d_state": 6, "norm_eps": 1e-6}
GROUPS = {**M2, "n_groups": 2}
M1 = {"mixer": "normed-mamba", "d_state": 5, "norm_eps": 1e-6}
DELTA = {"mixer": "gated-deltanet", "projections": "own", "n_heads": 4, "norm_eps": 1e-6}
OLMO = {**DELTA, "topology": "sequential", "norm_eps": 1e-5}
NEG = {**OLMO, "allow_neg_eigval": True, "expand_value": 2.0, "conv_size": 3}
CONV = {"mixer": "gated-conv", "conv_size": 4}

# class -> (source family, its settings over the first tiny variant, mixers). The first variants
# have four layers, four query heads, and two key heads.
HYBRIDS: dict[str, tuple[tuple[str, dict[str, Any], list[Any]], ...]] = {
    "GraniteMoeHybridForCausalLM": (
        ("llama", {}, [M2, A, M2, M2]),
        ("llama", {"tie_word_embeddings": True}, [A, M2, M2, A]),
        ("mistral", {"num_key_value_heads": 1}, [M2, M2, M2, A]),
    ),
    "BambaForCausalLM": (
        ("llama", {}, [GROUPS, A, GROUPS, GROUPS]),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
         [A, M2, A, M2]),
        ("llama", {"head_dim": 16, "num_key_value_heads": 4}, [GROUPS, GROUPS, A, A]),
    ),
    "FalconH1ForCausalLM": (
        ("llama", {}, BESIDE),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
         {**BESIDE, "mamba_expand": 1}),
        ("llama", {"head_dim": 16, "num_key_value_heads": 1}, BESIDE_GROUPS),
    ),
    "JambaForCausalLM": (
        ("llama", {}, [M1, UNTURNED, M1, UNTURNED]),
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}, [M1, M1, M1, UNTURNED]),
        ("llama", {"head_dim": 16}, [UNTURNED, M1, M1, UNTURNED]),
    ),
    "OlmoHybridForCausalLM": (
        ("olmo2", {}, [OLMO, A, OLMO, A]),
        ("olmo2", {"tie_word_embeddings": True, "attention_bias": True}, [A, NEG, NEG, NEG]),
        ("olmo2", {"num_key_value_heads": 4}, [NEG, NEG, UNTURNED, UNTURNED]),
    ),
    "Qwen3NextForCausalLM": (
        ("qwen3", {}, [DELTA, A, DELTA, A]),
        ("qwen3", {"tie_word_embeddings": True, "attention_bias": True},
         [A, {**DELTA, "expand_key": 0.5, "expand_value": 1.5}] * 2),
        ("qwen3", {"num_key_value_heads": 1, "head_dim": 12}, [DELTA, DELTA, DELTA, A]),
    ),
    "Lfm2ForCausalLM": (
        ("qwen3", {}, [CONV, A, CONV, A]),
        ("qwen3", {"tie_word_embeddings": True, "num_key_value_heads": 1}, [A, CONV, CONV, CONV]),
        ("qwen3", {"num_key_value_heads": 4, "head_dim": 12}, ["gated-conv", "gated-conv", A, A]),
    ),
}  # fmt: skip
CASES = [(name, index) for name, rows in HYBRIDS.items() for index in range(len(rows))]


def hybrid(name: str, index: int) -> ConvertedForCausalLM:
    """The model of a case, each of its mixers a little off its start."""
    family, settings, target = HYBRIDS[name][index]
    return converted(target, tiny(family, **settings))
