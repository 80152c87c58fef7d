"""Mamba-2 of transformers with our scan: same parameters, same numbers, products of matrices.

transformers' torch path fills a short sequence up to a chunk of 256 steps and makes the decay
between any two of them for each head, several times over; `decayed_scan` works in chunks of 32 and
makes what heads of a group share once. Around it stands transformers' own forward
(`fast_functions`); `fast_paths.bind_fast_paths` gives instances these subclasses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.bamba.modeling_bamba import BambaMixer
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1Mixer
from transformers.models.granitemoehybrid.modeling_granitemoehybrid import (
    GraniteMoeHybridMambaLayer,
)
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer

from manticore.mixers.decayed_scan import decayed_scan
from manticore.mixers.precision import widen
from manticore.models.fast_functions import calling, convolve, own_state, whose


def chunk_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **_: Any,
) -> Any:
    """Do what transformers' `mamba2_chunk_scan` does (section 6 of arXiv:2405.21060).

    Args:
        hidden_states: x, (batch, seq, heads, channels of a head).
        dt: (batch, seq, heads), before the bias and softplus.
        A: (heads,), negative.
        B, C: (batch, seq, groups, states).
        chunk_size: theirs; ours is another, and the numbers are the same.
        D: (heads,), the skip.
        initial_states: (batch, heads, channels, states).

    Returns:
        y (batch, seq, heads, channels) in float32 or better, with return_final_states also the
        state (batch, heads, channels, states).
    """
    dt = torch.clamp(_step_length(dt, dt_bias, dt_softplus), *dt_limit).unsqueeze(-1)
    x = widen(hidden_states)
    log_decay = widen(A).unsqueeze(-1) * dt  # (batch, seq, heads, 1)
    q, k, v, log_decay = (each.transpose(1, 2) for each in (widen(C), widen(B), x * dt, log_decay))
    state = own_state(initial_states)
    y, state = decayed_scan(q, k, v, log_decay, None if state is None else state.mT)
    y = y.transpose(1, 2)
    y = (y if D is None else y + D.unsqueeze(-1) * x).contiguous()
    return (y, state.mT.contiguous()) if return_final_states else y


def state_update(
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    **_: Any,
) -> Tensor:
    """Do what transformers' `mamba2_selective_state_update` does: one step, the state in place.

    Theirs overwrites what its own backward pass needs. What a head shares comes repeated: dt, D
    and dt_bias end in (heads, channels), A is (heads, channels, states).
    """
    bias = None if dt_bias is None else dt_bias[:, 0]
    dt = _step_length(dt[..., 0], bias, dt_softplus).unsqueeze(-1)  # (batch, heads, 1)
    x, B, C = (widen(each) for each in (hidden_states, B, C))
    B, C = (each.repeat_interleave(x.shape[1] // each.shape[1], dim=1) for each in (B, C))
    decay = torch.exp(widen(A[:, :1, 0]) * dt).unsqueeze(-1)
    before = state.clone() if torch.is_grad_enabled() else state
    new = torch.addcmul(decay * before, (dt * x).unsqueeze(-1), B.unsqueeze(-2))
    state.copy_(new)
    y = (new @ C.unsqueeze(-1)).squeeze(-1) + D[:, :1] * x
    return (y if z is None else y * F.silu(z)).to(hidden_states.dtype)


def _step_length(dt: Tensor, bias: Tensor | None, softplus: bool) -> Tensor:
    dt = dt if bias is None else dt + bias.to(dt.dtype)
    return widen(F.softplus(dt) if softplus else dt)


class ChunkScan(nn.Module):
    """Put before one of transformers' Mamba-2 layers."""

    scan_name = "decayed_scan"
    A_log: Tensor

    def scan_in_use(self) -> str:
        """Whose scan runs where the weights are now."""
        return whose(self.A_log, "mamba2_chunk_scan")


_OURS: dict[str, Callable[..., Any]] = {
    "mamba2_chunk_scan": chunk_scan,
    "mamba2_selective_state_update": state_update,
    "causal_conv1d_fn": convolve,
}


class FastMamba2Mixer(ChunkScan, Mamba2Mixer):
    """Mamba-2's."""

    forward = calling(Mamba2Mixer.forward, **_OURS)


class FastBambaMixer(ChunkScan, BambaMixer):
    """Bamba's."""

    forward = calling(BambaMixer.forward, **_OURS)


class FastFalconH1Mixer(ChunkScan, FalconH1Mixer):
    """Falcon-H1's: multipliers, and a norm that can be left out."""

    forward = calling(FalconH1Mixer.forward, **_OURS)


class FastGraniteMoeHybridMambaLayer(ChunkScan, GraniteMoeHybridMambaLayer):
    """Granite 4's."""

    forward = calling(GraniteMoeHybridMambaLayer.forward, **_OURS)


class FastNemotronHMamba2Mixer(ChunkScan, NemotronHMamba2Mixer):
    """Nemotron-H's."""

    forward = calling(NemotronHMamba2Mixer.forward, **_OURS)


FAST_MAMBA2: dict[type[nn.Module], type[nn.Module]] = {
    Mamba2Mixer: FastMamba2Mixer,
    BambaMixer: FastBambaMixer,
    FalconH1Mixer: FastFalconH1Mixer,
    GraniteMoeHybridMambaLayer: FastGraniteMoeHybridMambaLayer,
    NemotronHMamba2Mixer: FastNemotronHMamba2Mixer,
}
