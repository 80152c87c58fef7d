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

from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedConfig

from manticore.models.amounts import CacheBytes, Cost, Flops
from manticore.models.component_logits import has_head_bias
from manticore.models.layer_shapes import layer_shapes
from manticore.models.supported import check_supported

__all__ = [
    "CacheBytes",
    "Cost",
    "Flops",
    "cache_bytes",
    "component_cost",
    "decode_flops",
    "embedding_cost",
    "head_cost",
    "layer_cost",
]


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
    family = check_supported(config)
    if family.has_position_table(config):
        rows += config.max_position_embeddings + family.position_offset
    return Cost(embedding_parameters=rows * config.hidden_size)


def head_cost(config: PreTrainedConfig, *, vocab_size: int | None = None) -> Cost:
    """The language model head; a tied one brings FLOPs but no parameters."""
    rows = config.vocab_size if vocab_size is None else vocab_size
    weights = rows * config.hidden_size
    bias = rows if has_head_bias(config) else 0
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
    flops = Flops()
    for layer, count in _runs(layer_shapes(config)[lo:hi]):
        # A token that sees so many keys does what each token of a full pass of that length does.
        seen = context if layer.window is None else min(context, layer.window)
        flops += layer.forward_flops(seen, count)
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


def _runs(layers: list[Any]) -> list[tuple[Any, int]]:
    """Equal neighbours together, with how many they are."""
    return [(layer, len(list(same))) for layer, same in groupby(layers)]
