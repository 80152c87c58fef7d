"""What a component costs: parameters, FLOPs per token, and cache bytes per sequence.

Everything follows from the config; no model is built. All counts can be taken for a range of
layers, so that a hybrid adds up the blocks that are active.

Conventions:

- A multiply-add is 2 FLOPs. Norms, activations, rotary embeddings, softmax and residual sums are
  left out, as in torch's FLOP counter.
- Attention counts every score that is computed: T x T at length T, also those above the diagonal
  and outside a local window, which Hugging Face's models compute and mask. Per token that is
  2 * 2 * T * heads * head_dim.
- The backward pass of a matrix product, a convolution or attention is two of the forward one.
  What gradient checkpointing or a flash kernel computes again is left out.
- The scan counts every elementary operation of `selective_scan_naive` (an exponential is one):
  (7 N + 5) per token and channel forward, (15 N + 10) backward, with N the state size. Forward
  that is dt A, exp, u B, decay h, + u B, h C, sum for each state, and u = dt x, D x, +, silu, gate
  for each channel.
- Models built from mixers count by the formulas of their mixers (`MixerSpec.flops_per_token`), in
  which a causal score counts once for each pair that is seen; backward is two forward passes.
- `cache_bytes` is what Hugging Face's cache holds, which keeps one convolution input more than
  the next token needs.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedConfig

from manticore.mixers.interface import MixerSpec
from manticore.models.families import check_supported

SCAN_FORWARD = (7, 5)
"""Operations for each (token, channel, state) and for each (token, channel)."""
SCAN_BACKWARD = (15, 10)


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating point operations by kind."""

    matmul: int = 0
    convolution: int = 0
    attention: int = 0
    scan: int = 0
    mixer: int = 0
    """Of whole mixers, counted by their own formulas."""

    @property
    def total(self) -> int:
        """All kinds together."""
        return self.matmul + self.convolution + self.attention + self.scan + self.mixer

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(**_added(self, other))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Parameters, and FLOPs per token at one sequence length; costs of parts can be added."""

    embedding_parameters: int = 0
    """Token and position tables, and the head unless it is the token table."""
    layer_parameters: int = 0
    """Everything else, the final norm included."""
    forward: Flops = Flops()
    """Per token, averaged over a sequence without cache."""
    training: Flops = Flops()
    """Per token, forward and backward."""

    @property
    def parameters(self) -> int:
        """All parameters, shared ones once."""
        return self.embedding_parameters + self.layer_parameters

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(**_added(self, other))


@dataclass(frozen=True, kw_only=True)
class CacheBytes:
    """Memory that one sequence needs while it is generated."""

    state: int = 0
    """Recurrent and convolution states, the same at every length."""
    kv: int = 0
    """Keys and values, growing with the length."""

    @property
    def total(self) -> int:
        """Both together."""
        return self.state + self.kv

    def __add__(self, other: "CacheBytes") -> "CacheBytes":
        return CacheBytes(**_added(self, other))


def component_cost(
    config: PreTrainedConfig, seq_len: int, *, vocab_size: int | None = None
) -> Cost:
    """Cost of a whole component on sequences of `seq_len` tokens.

    Args:
        vocab_size: rows of the tables, where a hybrid cuts them; default the component's own.
    """
    return (
        embedding_cost(config, vocab_size=vocab_size)
        + layer_cost(config, 0, config.num_hidden_layers, seq_len)
        + head_cost(config, vocab_size=vocab_size)
    )


def embedding_cost(config: PreTrainedConfig, *, vocab_size: int | None = None) -> Cost:
    """The token table and the position table: parameters, and no FLOPs."""
    rows = config.vocab_size if vocab_size is None else vocab_size
    if check_supported(config).has_position_table(config):
        rows += config.max_position_embeddings
    return Cost(embedding_parameters=rows * config.hidden_size)


def head_cost(config: PreTrainedConfig, *, vocab_size: int | None = None) -> Cost:
    """The language model head; a tied one brings FLOPs but no parameters."""
    rows = config.vocab_size if vocab_size is None else vocab_size
    weights = rows * config.hidden_size
    bias = rows if getattr(config, "head_bias", False) else 0
    return Cost(
        embedding_parameters=bias + (0 if config.tie_word_embeddings else weights),
        forward=Flops(matmul=2 * weights),
        training=Flops(matmul=6 * weights),
    )


def layer_cost(
    config: PreTrainedConfig, lo: int, hi: int, seq_len: int, *, final_norm: bool | None = None
) -> Cost:
    """Cost of layers `lo`..`hi - 1`, with the final norm if they end with the last layer.

    Like `run_layers`, an empty range costs nothing.

    Args:
        final_norm: end with the final norm or not, whatever the range.
    """
    depth = config.num_hidden_layers
    if not 0 <= lo <= hi <= depth or seq_len < 1:
        raise ValueError(
            f"Layers {lo} to {hi} at seq_len={seq_len}: give 0 <= lo <= hi <= {depth} (the "
            "component's depth) and a length of at least 1."
        )
    ends = hi == depth if final_norm is None else final_norm
    total = Cost()
    for layer, count in _runs(layer_shapes(config)[lo:hi]):
        total += Cost(
            layer_parameters=count * layer.parameters,
            forward=layer.forward_flops(seq_len, count),
            training=layer.training_flops(seq_len, count),
        )
    norm = layer_shapes(config)[0].final_norm if ends and lo < hi else 0
    return total + Cost(layer_parameters=norm)


def decode_flops(
    config: PreTrainedConfig,
    context: int,
    *,
    lo: int = 0,
    hi: int | None = None,
    head: bool = True,
    vocab_size: int | None = None,
) -> Flops:
    """FLOPs of one new token with a cache, when it sees `context` tokens, itself included."""
    hi = config.num_hidden_layers if hi is None else hi
    # A token that sees `context` keys does what each token of a full pass of that length does.
    flops = layer_cost(config, lo, hi, context).forward
    return flops + head_cost(config, vocab_size=vocab_size).forward if head else flops


def cache_bytes(
    config: PreTrainedConfig,
    length: int,
    dtype: torch.dtype = torch.float32,
    *,
    lo: int = 0,
    hi: int | None = None,
) -> CacheBytes:
    """Cache of one sequence after `length` tokens, for layers `lo`..`hi - 1` (default: all).

    Keys, values and convolution states have the model's dtype; the state of the scan stays in
    float32, because small steps on a slow decay vanish in 16 bits.
    """
    total = CacheBytes()
    for layer, count in _runs(layer_shapes(config)[lo:hi]):
        for _ in range(count):
            total += layer.cache_bytes(length, dtype)
    return total


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
        return CacheBytes(
            state=self.channels * (self.kernel * dtype.itemsize + self.states * scan_itemsize),
            kv=length * 2 * self.kv_width * dtype.itemsize,
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
        if self.spec.state_size(2 * length + 1) > all_of_it:  # keys and values
            return CacheBytes(kv=all_of_it * dtype.itemsize)
        itemsize = max(dtype.itemsize, torch.float32.itemsize)
        return CacheBytes(state=mixing * itemsize + (all_of_it - mixing) * dtype.itemsize)


def layer_shapes(config: PreTrainedConfig) -> list[LayerShape] | list[MixerShape]:
    """The sizes in every layer of a component, in order."""
    model_type = check_supported(config).model_type
    if model_type == "manticore_mixers":
        norm = config.hidden_size * (1 if config.norm == "rms" else 2)
        return [MixerShape(spec, norm) for spec in config.specs()]
    return [_SHAPES[model_type](config)] * config.num_hidden_layers


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


def _runs(layers: list[Any]) -> list[tuple[Any, int]]:
    """Equal neighbours together, with how many they are."""
    return [(layer, len(list(same))) for layer, same in groupby(layers)]


def _added(a: Any, b: Any) -> dict[str, Any]:
    return {field.name: getattr(a, field.name) + getattr(b, field.name) for field in fields(a)}
