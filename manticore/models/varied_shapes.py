"""Sizes in the layers of recurrent models, of hybrids that others designed, of mixtures of experts.

They are read off the layers of a model without storage, each by itself: layers of one model may
differ, and the configs have little in common.
A recurrent mixer counts by the state that it keeps: the elementary operations of the step-by-step
recurrence, whatever form (chunks, a kernel) computes it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig

from manticore.models.amounts import CacheBytes, Flops
from manticore.models.loading import special_floats
from manticore.models.supported import check_supported

VARIED = (
    "bamba",
    "falcon_h1",
    "falcon_mamba",
    "granitemoe",
    "granitemoehybrid",
    "jamba",
    "kimi_linear",
    "lfm2",
    "mamba2",
    "mixtral",
    "nemotron_h",
    "olmo_hybrid",
    "olmoe",
    "qwen3_moe",
    "qwen3_next",
    "rwkv",
)
"""Families whose layers are read off here."""

# Operations for each element of the state and for each channel, forward; backward takes twice as
# many, Mamba-1's as counted in `shape_types`.
# Mamba-2: decay, dt x B, their sum, times C, sum; dt x, D x, sum, dt, decay for each channel.
# Delta rule: decay, k S (two), k times what is written, sum, q S (two).
# RWKV-4: 12 for the output and 11 for the state, largest keys and exponentials included.
_MAMBA2, _DELTA, _WKV4 = (5, 5), (7, 0), 23


@dataclass(frozen=True, kw_only=True)
class MeasuredShape:
    """The sizes in one layer."""

    parameters: int
    final_norm: int
    """Parameters of the norm after the last layer."""
    products: int
    """Multiply-adds of matrix products for each token, of experts the active ones."""
    convolution: int
    """Channels times taps of the short convolutions."""
    attention_width: int
    """Heads times the mean of query and value size."""
    kv_width: int
    """Numbers that attention keeps for each token: half of keys and values together."""
    state: int
    """Numbers in the recurrent state."""
    scan: tuple[int, int]
    """Operations of the recurrence for each token, forward and backward."""
    window: int | None = None
    """Keys that a token sees, itself included; None: all before it."""

    def forward_flops(self, seq_len: int, count: int = 1) -> Flops:
        """Per token, of `count` layers."""
        return self._flops(seq_len, count, 1, self.scan[0])

    def training_flops(self, seq_len: int, count: int = 1) -> Flops:
        """Per token, forward and backward, of `count` layers."""
        return self._flops(seq_len, count, 3, sum(self.scan))

    def cache_bytes(self, length: int, dtype: torch.dtype) -> CacheBytes:
        """Cache of one sequence after `length` tokens; recurrent states are float32 or wider."""
        wide = max(dtype.itemsize, torch.float32.itemsize)
        kept = length if self.window is None else min(length, self.window - 1)
        return CacheBytes(
            state=self.convolution * dtype.itemsize + self.state * wide,
            kv=2 * kept * self.kv_width * dtype.itemsize,
        )

    def _flops(self, seq_len: int, count: int, passes: int, scan: int) -> Flops:
        return Flops(
            matmul=count * passes * 2 * self.products,
            convolution=count * passes * 2 * self.convolution,
            attention=count * passes * 4 * seq_len * self.attention_width,
            scan=count * scan,
        )


def varied_layers(config: PreTrainedConfig) -> list[MeasuredShape]:
    """The sizes in every layer, in order."""
    return list(_measured(config.to_json_string(use_diff=False), config.model_type))


@lru_cache(maxsize=32)
def _measured(config_text: str, model_type: str) -> tuple[MeasuredShape, ...]:
    fields = json.loads(config_text, object_hook=special_floats)
    config = CONFIG_MAPPING[model_type].from_dict(fields)
    with torch.device("meta"):
        base = AutoModel.from_config(config, dtype=torch.float32)
    family = check_supported(config)
    norm = sum(p.numel() for p in getattr(base, family.final_norm).parameters())
    return tuple(_measure(config, layer, norm) for layer in getattr(base, family.layers))


def _measure(config: PreTrainedConfig, layer: Any, final_norm: int) -> MeasuredShape:
    dense = sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear))
    convolutions = (m for m in layer.modules() if isinstance(m, nn.Conv1d))
    attends = any(hasattr(m, "k_proj") or hasattr(m, "kv_b_proj") for m in _attention(layer))
    recurrences = list(_recurrences(layer))
    return MeasuredShape(
        parameters=sum(p.numel() for p in layer.parameters()),
        final_norm=final_norm,
        products=dense + _active_experts(config, layer),
        convolution=sum(m.weight.numel() for m in convolutions),
        attention_width=_attention_width(config) if attends else 0,
        kv_width=_kv_width(config) if attends else 0,
        state=sum(state for state, _, _ in recurrences),
        scan=(sum(f for _, f, _ in recurrences), sum(b for _, _, b in recurrences)),
        window=getattr(config, "sliding_window", None),
    )


def _attention(layer: Any) -> Iterator[Any]:
    """Modules of softmax attention: those without a recurrence of their own."""
    for module in layer.modules():
        name = type(module).__name__
        if name.endswith("Attention") and not name.endswith("DeltaAttention"):
            yield module


def _recurrences(layer: Any) -> Iterator[tuple[int, int, int]]:
    """(numbers in the state, operations forward, backward) of each recurrent mixer."""
    for module in layer.modules():
        if hasattr(module, "time_decay"):  # RWKV-4: two sums and their scale, two shifted tokens
            channels = module.time_decay.numel()
            yield 5 * channels, _WKV4 * channels, 2 * _WKV4 * channels
            continue
        A_log = getattr(module, "A_log", None)
        if A_log is None:
            continue
        if A_log.dim() == 2:  # Mamba-1: channels by states
            channels, states = A_log.shape
            yield channels * states, channels * (7 * states + 5), channels * (15 * states + 10)
            continue
        if hasattr(module, "ssm_state_size"):
            channels = module.num_heads * module.head_dim
            state, (each, channel) = channels * module.ssm_state_size, _MAMBA2
        else:
            heads = getattr(module, "num_v_heads", None) or module.num_heads
            key = getattr(module, "head_k_dim", None) or module.head_dim
            value = getattr(module, "head_v_dim", None) or module.head_dim
            channels, state, (each, channel) = 0, heads * key * value, _DELTA
        forward = each * state + channel * channels
        yield state, forward, 2 * forward


def _active_experts(config: PreTrainedConfig, layer: Any) -> int:
    """Weights of the experts that one token uses, where experts are one stacked parameter."""
    active = 0
    for parameter in layer.parameters():
        if parameter.dim() == 3 and parameter.shape[1] > 1:  # not a convolution
            active += parameter[0].numel() * _experts_per_token(config)
    return active + sum(
        m.weight.numel() for m in layer.modules() if type(m).__name__.lower().endswith("topkrouter")
    )


def _experts_per_token(config: PreTrainedConfig) -> int:
    per_token: int | None = getattr(config, "num_experts_per_tok", None)
    return per_token if per_token is not None else config.num_experts_per_token


def _attention_width(config: PreTrainedConfig) -> int:
    if config.model_type == "kimi_linear":
        return config.num_attention_heads * (config.qk_head_dim + config.v_head_dim) // 2
    return config.num_attention_heads * _head_size(config)


def _kv_width(config: PreTrainedConfig) -> int:
    if config.model_type == "kimi_linear":  # the latent and the rotary part, both kept once
        return (config.kv_lora_rank + config.qk_rope_head_dim) // 2
    return config.num_key_value_heads * _head_size(config)


def _head_size(config: PreTrainedConfig) -> int:
    size: int | None = getattr(config, "head_dim", None)
    return size or config.hidden_size // config.num_attention_heads
