"""Gated DeltaNet of transformers with our scan: same parameters, same numbers.

transformers' torch path writes the chunks' outputs into one tensor, of which the backward pass
makes a copy for each chunk. Around `delta_scan` stands transformers' own forward
(`fast_functions`); `fast_paths.bind_fast_paths` gives instances these subclasses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from manticore.mixers.delta_scan import delta_scan
from manticore.mixers.precision import widen
from manticore.models.fast_functions import calling, convolve, own_state, whose

_EPS = 1e-6
"""Added to the square of a norm, as transformers does."""


def chunk_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[Tensor, Tensor | None]:
    """Do what transformers' `torch_chunk_gated_delta_rule` does (arXiv:2412.06464).

    Args:
        query, key: (batch, seq, key heads, key size); as many value heads, one after another,
            share each of them.
        value: (batch, seq, value heads, value size).
        g, beta: (batch, seq, value heads), the logarithm of the decay and the writes' strength.
        initial_state: (batch, value heads, key size, value size).

    Returns:
        (batch, seq, value heads, value size) in query's dtype, and the state or None.
    """
    q, k = widen(query), widen(key)
    if use_qk_l2norm_in_kernel:
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _EPS) for x in (q, k))
    q, k = (_by_head(x, value.shape[2]) for x in (q * q.shape[-1] ** -0.5, k))
    v, beta, g = (widen(x).transpose(1, 2) for x in (value, beta, g))
    y, state = delta_scan(q, k, v, beta, g, own_state(initial_state))
    return y.transpose(1, 2).to(query.dtype), state if output_final_state else None


def _by_head(x: Tensor, heads: int) -> Tensor:
    x = x.transpose(1, 2)
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


class DeltaScan(nn.Module):
    """Put before one of transformers' gated DeltaNets."""

    scan_name = "delta_scan"
    A_log: Tensor

    def scan_in_use(self) -> str:
        """Whose scan runs where the weights are now."""
        return whose(self.A_log, "torch_chunk_gated_delta_rule")


_OURS: dict[str, Callable[..., Any]] = {
    "torch_chunk_gated_delta_rule": chunk_delta_rule,
    "torch_recurrent_gated_delta_rule": chunk_delta_rule,
    "causal_conv1d_fn": convolve,
}


class FastQwen3NextGatedDeltaNet(DeltaScan, Qwen3NextGatedDeltaNet):
    """Qwen3-Next's."""

    forward = calling(Qwen3NextGatedDeltaNet.forward, **_OURS)


class FastOlmoHybridGatedDeltaNet(DeltaScan, OlmoHybridGatedDeltaNet):
    """OLMo Hybrid's."""

    forward = calling(OlmoHybridGatedDeltaNet.forward, **_OURS)


FAST_DELTA: dict[type[nn.Module], type[nn.Module]] = {
    Qwen3NextGatedDeltaNet: FastQwen3NextGatedDeltaNet,
    OlmoHybridGatedDeltaNet: FastOlmoHybridGatedDeltaNet,
}
