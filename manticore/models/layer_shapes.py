"""The sizes in each layer of a component, from its config: what every cost follows from."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig

from manticore.mixers.interface import MixerSpec
from manticore.models.amounts import CacheBytes, Flops
from manticore.models.families import check_supported
from manticore.models.loading import special_floats
from manticore.models.recurrent_shapes import RECURRENT, MeasuredShape, recurrent_layers

SCAN_FORWARD = (7, 5)
"""Operations for each (token, channel, state) and for each (token, channel)."""
SCAN_BACKWARD = (15, 10)


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """The sizes in one layer from which everything else follows."""

    matrices: tuple[tuple[int, int, bool], ...]
    """(inputs, outputs, has a bias) of every matrix product."""
    other_parameters: int
    """Norms and whatever else is in no matrix and no convolution."""
    final_norm: int
    """Parameters of the norm after the last layer."""
    attention_width: int = 0
    """Heads times head size, for queries."""
    kv_width: int = 0
    """Heads times head size, for keys."""
    window: int | None = None
    """Keys that a token sees, itself included; None: all before it."""
    channels: int = 0
    """Channels of convolution and scan."""
    kernel: int = 0
    """Width of the convolution."""
    states: int = 0
    """State size N of the scan, per channel."""

    @property
    def parameters(self) -> int:
        """Of one layer."""
        dense = sum(a * b + b * bias for a, b, bias in self.matrices)
        return dense + self.channels * self.kernel + self.other_parameters

    def forward_flops(self, seq_len: int, count: int = 1) -> Flops:
        """Per token, of `count` layers."""
        return self._flops(seq_len, count, 1, SCAN_FORWARD)

    def training_flops(self, seq_len: int, count: int = 1) -> Flops:
        """Per token, forward and backward, of `count` layers."""
        both = (SCAN_FORWARD[0] + SCAN_BACKWARD[0], SCAN_FORWARD[1] + SCAN_BACKWARD[1])
        return self._flops(seq_len, count, 3, both)

    def cache_bytes(self, length: int, dtype: torch.dtype) -> CacheBytes:
        """Cache of one sequence after `length` tokens, of one layer."""
        scan_itemsize = max(dtype.itemsize, torch.float32.itemsize)
        # Of a window, transformers keeps what the next token will still see.
        kept = length if self.window is None else min(length, self.window - 1)
        return CacheBytes(
            state=self.channels * (self.kernel * dtype.itemsize + self.states * scan_itemsize),
            kv=kept * 2 * self.kv_width * dtype.itemsize,
        )

    def _flops(self, seq_len: int, count: int, passes: int, scan: tuple[int, int]) -> Flops:
        return Flops(
            matmul=count * passes * sum(2 * a * b for a, b, _ in self.matrices),
            convolution=count * passes * 2 * self.channels * self.kernel,
            attention=count * passes * 4 * seq_len * self.attention_width,
            scan=count * self.channels * (scan[0] * self.states + scan[1]),
        )


@dataclass(frozen=True)
class MixerShape:
    """One layer of a model built from mixers: the mixer's own formulas, and a norm."""

    spec: MixerSpec
    norm: int
    """Parameters of the norm before the mixer."""
    window: ClassVar[None] = None
    """The mixer's formulas know their own."""

    @property
    def parameters(self) -> int:
        """Of the layer."""
        return self.spec.num_parameters() + self.norm

    @property
    def final_norm(self) -> int:
        """Parameters of the norm after the last layer."""
        return self.norm

    def forward_flops(self, seq_len: int, count: int = 1) -> Flops:
        """Per token, of `count` layers."""
        return Flops(mixer=count * self.spec.flops_per_token(seq_len))

    def training_flops(self, seq_len: int, count: int = 1) -> Flops:
        """Per token, forward and backward: a backward pass counts as two forward ones."""
        return Flops(mixer=3 * count * self.spec.flops_per_token(seq_len))

    def cache_bytes(self, length: int, dtype: torch.dtype) -> CacheBytes:
        """Cache of one sequence after `length` tokens; see `cache_bytes` for what is float32."""
        mixing, all_of_it = self.spec.mixing_state_size(length), self.spec.state_size(length)
        if self.spec.state_size(1) < self.spec.state_size(2):  # keys and values, or a window
            return CacheBytes(kv=all_of_it * dtype.itemsize)
        itemsize = max(dtype.itemsize, torch.float32.itemsize)
        return CacheBytes(state=mixing * itemsize + (all_of_it - mixing) * dtype.itemsize)


def layer_shapes(
    config: PreTrainedConfig,
) -> list[LayerShape] | list[MixerShape] | list[MeasuredShape]:
    """The sizes in every layer of a component, in order."""
    model_type = check_supported(config).model_type
    if model_type == "manticore_mixers":
        norm = config.hidden_size * (1 if config.norm == "rms" else 2)
        return [MixerShape(spec, norm) for spec in config.specs()]
    if model_type == "manticore_converted":
        converted: list[MixerShape] = config.layer_shapes()  # its room knows its blocks
        return converted
    if model_type in _SHAPES:
        return [_SHAPES[model_type](config)] * config.num_hidden_layers
    return recurrent_layers(config) if model_type in RECURRENT else measured_layers(config)


def measured_layers(config: PreTrainedConfig) -> list[LayerShape]:
    """The sizes in every layer of an attention model, read off one layer without storage."""
    shape = _measured_layer(config.to_json_string(use_diff=False), config.model_type)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        # A config without kinds of layers, such as Mistral's, has its window everywhere.
        return [replace(shape, window=window)] * config.num_hidden_layers
    return [replace(shape, window=window if kind.startswith("sliding") else None) for kind in kinds]


@lru_cache(maxsize=64)
def _measured_layer(config_text: str, model_type: str) -> LayerShape:
    fields = json.loads(config_text, object_hook=special_floats) | {
        "num_hidden_layers": 1,
        "layer_types": None,
    }
    config = CONFIG_MAPPING[model_type](**fields | {"dtype": None})
    with torch.device("meta"):
        base = AutoModel.from_config(config)
    family = check_supported(config)
    base = base if family.inner is None else getattr(base, family.inner)
    layer, norm = getattr(base, family.layers)[0], getattr(base, family.final_norm)
    dense = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    in_dense = sum(p.numel() for module in dense for p in module.parameters())
    return LayerShape(
        matrices=tuple((m.in_features, m.out_features, m.bias is not None) for m in dense),
        other_parameters=sum(p.numel() for p in layer.parameters()) - in_dense,
        final_norm=0 if norm is None else sum(p.numel() for p in norm.parameters()),
        attention_width=config.num_attention_heads * _head_size(config),
        kv_width=_kv_heads(config) * _head_size(config),
    )


def _head_size(config: PreTrainedConfig) -> int:
    size: int | None = getattr(config, "head_dim", None)
    return size or config.hidden_size // config.num_attention_heads


def _kv_heads(config: PreTrainedConfig) -> int:
    if config.model_type != "falcon":
        heads: int = getattr(config, "num_key_value_heads", config.num_attention_heads)
        return heads
    # Keys of one head are kept, of groups they are repeated for every head first.
    is_shared = config.multi_query and not config.new_decoder_architecture
    return 1 if is_shared else config.num_attention_heads


def _gpt_neox(config: PreTrainedConfig) -> LayerShape:
    d, d_ff, bias = config.hidden_size, config.intermediate_size, config.attention_bias
    return LayerShape(
        matrices=((d, 3 * d, bias), (d, d, bias), (d, d_ff, True), (d_ff, d, True)),
        other_parameters=4 * d,
        final_norm=2 * d,
        attention_width=d,
        kv_width=d,
    )


def _llama(config: PreTrainedConfig) -> LayerShape:
    d, d_ff = config.hidden_size, config.intermediate_size
    q_width = config.num_attention_heads * config.head_dim
    kv_width = config.num_key_value_heads * config.head_dim
    bias, mlp_bias = config.attention_bias, config.mlp_bias
    attention = ((d, q_width, bias), (d, kv_width, bias), (d, kv_width, bias), (q_width, d, bias))
    return LayerShape(
        matrices=(*attention, (d, d_ff, mlp_bias), (d, d_ff, mlp_bias), (d_ff, d, mlp_bias)),
        other_parameters=2 * d,
        final_norm=d,
        attention_width=q_width,
        kv_width=kv_width,
    )


def _gpt2(config: PreTrainedConfig) -> LayerShape:
    d = config.hidden_size
    d_ff = config.n_inner if config.n_inner is not None else 4 * d
    return LayerShape(
        matrices=((d, 3 * d, True), (d, d, True), (d, d_ff, True), (d_ff, d, True)),
        other_parameters=4 * d,
        final_norm=2 * d,
        attention_width=d,
        kv_width=d,
    )


def _gpt_neo(config: PreTrainedConfig) -> LayerShape:
    d = config.hidden_size
    d_ff = config.intermediate_size if config.intermediate_size is not None else 4 * d
    return LayerShape(
        matrices=(*[(d, d, False)] * 3, (d, d, True), (d, d_ff, True), (d_ff, d, True)),
        other_parameters=4 * d,
        final_norm=2 * d,
        attention_width=d,
        kv_width=d,
    )


def _mamba(config: PreTrainedConfig) -> LayerShape:
    d, channels, states = config.hidden_size, config.intermediate_size, config.state_size
    rank, bias = int(config.time_step_rank), config.use_bias
    conv_bias = channels if config.use_conv_bias else 0
    return LayerShape(
        matrices=(
            (d, 2 * channels, bias),
            (channels, rank + 2 * states, False),
            (rank, channels, True),
            (channels, d, bias),
        ),
        other_parameters=d + conv_bias + channels * states + channels,  # norm, bias, A, D
        final_norm=d,
        channels=channels,
        kernel=config.conv_kernel,
        states=states,
    )


_SHAPES: dict[str, Callable[[PreTrainedConfig], LayerShape]] = {
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "mamba": _mamba,
}
