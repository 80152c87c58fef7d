"""Mamba-1 of transformers with our scan: same parameters, same numbers, exact continuation.

transformers' Mamba-1 falls back to a loop whose backward pass is quadratic in the length when no
CUDA kernel is there, and its multi-token continuation of a filled cache restarts at a zero state.
`fast_paths.bind_fast_paths` gives the mixers of Mamba, Falcon-Mamba and Jamba these subclasses.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.integrations.accelerate import force_accelerate_hooks
from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaMixer
from transformers.models.jamba.modeling_jamba import JambaMambaMixer
from transformers.models.mamba.modeling_mamba import MambaMixer

from manticore.mixers.causal_conv import causal_conv
from manticore.mixers.selective_scan import selective_scan, selective_step
from manticore.models.fast_functions import is_installed, own_state


class FastScan(nn.Module):
    """Put before one of transformers' mixers: our scan, equal outputs, exact continuation."""

    scan_name = "selective_scan"

    # What transformers' Mamba-1 mixers share.
    in_proj: Any
    x_proj: Any
    dt_proj: Any
    out_proj: Any
    conv1d: Any
    A_log: Any
    D: Any
    activation: str
    layer_idx: int
    conv_kernel_size: int
    time_step_rank: int
    ssm_state_size: int
    use_bias: bool
    # Falcon-Mamba's and Jamba's.
    dt_layernorm: Any
    b_layernorm: Any
    c_layernorm: Any

    @force_accelerate_hooks(["conv1d", "dt_proj"])
    def forward(
        self,
        hidden_states: Tensor,
        cache_params: Cache | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Mix tokens along time (section 3.4 and figure 3 of arXiv:2312.00752).

        Args:
            hidden_states: (batch, seq, d_model).
            cache_params: a transformers Cache, read at and written to this mixer's layer_idx.
            attention_mask: (batch, seq or more), 0 at padding; its last seq columns count.

        Returns:
            (batch, seq, d_model), same dtype.
        """
        held = None if cache_params is None else cache_params.get_recurrent_state(self.layer_idx)
        state = own_state(held)
        seq_len = hidden_states.shape[1]
        if _prefers_kernels(hidden_states) and (state is None or seq_len == 1):
            stock: Any = super()
            return stock.forward(hidden_states, cache_params, attention_mask, **kwargs)
        mask = _padding_mask(attention_mask, hidden_states)
        if seq_len == 1 and state is not None and mask is None and not torch.is_grad_enabled():
            return self._mix_token(hidden_states, cache_params, state)
        x, z = self.in_proj(_hide_padding(hidden_states, mask)).chunk(2, dim=-1)  # (B, T, D)
        if self.use_bias:  # which would fill the padding again
            x = _hide_padding(x, mask)
        x = _hide_padding(self._convolve(x, cache_params), mask)
        y, state = self._scan(x, z, state)
        if cache_params is not None:
            cache_params.update_recurrent_state(state, self.layer_idx)
        return self.out_proj(y.to(hidden_states.dtype))

    def scan_in_use(self) -> str:
        """Whose scan runs where the weights are now."""
        return "cuda-kernel" if _prefers_kernels(self.A_log) else "torch-step"

    def _mix_token(self, hidden_states: Tensor, cache_params: Any, state: Tensor) -> Tensor:
        """Do the same for one token behind a filled cache, with no dimension of time."""
        x, z = self.in_proj(hidden_states.squeeze(1)).chunk(2, dim=-1)  # (B, D)
        seen = cache_params.update_conv_state(
            x.unsqueeze(-1), self.layer_idx, conv_kernel_size=self.conv_kernel_size
        )[..., -self.conv_kernel_size :]  # (B, D, K), this token last
        x = (seen.to(self.conv1d.weight.dtype) * self.conv1d.weight.squeeze(1)).sum(dim=-1)
        if self.conv1d.bias is not None:
            x = x + self.conv1d.bias
        x = ACT2FN[self.activation](x)
        dt, A, B, C = self._scan_inputs(x)
        y, state = selective_step(x, dt, A, B, C, self.D, z, state)
        cache_params.update_recurrent_state(state, self.layer_idx)
        return self.out_proj(y.to(hidden_states.dtype)).unsqueeze(1)

    def _convolve(self, x: Tensor, cache_params: Cache | None) -> Tensor:
        seq_len, before = x.shape[1], self.conv_kernel_size - 1
        if cache_params is not None:
            # The cache answers with what it held followed by x, as (B, D, time).
            seen = cache_params.update_conv_state(
                x.transpose(1, 2), self.layer_idx, conv_kernel_size=self.conv_kernel_size
            )
            x = seen[..., -(seq_len + before) :].transpose(1, 2)
        weight = self.conv1d.weight
        missing = x.new_zeros(x.shape[0], before + seq_len - x.shape[1], x.shape[2])
        x = torch.cat([missing, x], dim=1).to(weight.dtype)
        return ACT2FN[self.activation](causal_conv(x, weight.squeeze(1), self.conv1d.bias))

    def _scan(self, x: Tensor, z: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        dt, A, B, C = self._scan_inputs(x)
        return selective_scan(x, dt, A, B, C, D=self.D, z=z, initial_state=state)

    def _scan_inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sizes = [self.time_step_rank, self.ssm_state_size, self.ssm_state_size]
        low_rank, B, C = torch.split(self.x_proj(x), sizes, dim=-1)
        if hasattr(self, "dt_layernorm"):  # Falcon-Mamba and Jamba
            low_rank = self.dt_layernorm(low_rank)
            B, C = self.b_layernorm(B), self.c_layernorm(C)
        # transformers reads the weight past the module, so that an adapter on dt_proj or its
        # quantization would have no effect or fail. A module that has something to add is called.
        is_plain = type(self.dt_proj) is nn.Linear
        project = self.dt_proj.forward if is_plain else self.dt_proj
        dt = F.softplus(project(low_rank).float())
        return dt, -torch.exp(self.A_log.float()), B, C


class FastMambaMixer(FastScan, MambaMixer):
    """Mamba's."""


class FastFalconMambaMixer(FastScan, FalconMambaMixer):
    """Falcon-Mamba's: norms on time step, B and C."""


class FastJambaMambaMixer(FastScan, JambaMambaMixer):
    """Jamba's: norms with weights on time step, B and C."""


FAST_MAMBA: dict[type[nn.Module], type[nn.Module]] = {
    MambaMixer: FastMambaMixer,
    FalconMambaMixer: FastFalconMambaMixer,
    JambaMambaMixer: FastJambaMambaMixer,
}


def _padding_mask(attention_mask: Tensor | None, hidden_states: Tensor) -> Tensor | None:
    """Return (batch, seq, 1), or None where the mask hides nothing."""
    if attention_mask is None:
        return None
    seq_len = hidden_states.shape[1]
    if attention_mask.dim() != 2 or attention_mask.shape[1] < seq_len:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; a Mamba layer takes "
            f"(batch, seq) with seq at least {seq_len}, the number of new tokens."
        )
    mask = attention_mask[:, -seq_len:]
    # Looking is free on a CPU; elsewhere it would wait for the device, and a mapped or traced
    # mask has no single answer.
    can_look = mask.device.type == "cpu" and not torch.compiler.is_compiling()
    if can_look and not torch._C._functorch.is_functorch_wrapped_tensor(mask) and mask.all():
        return None
    return mask.unsqueeze(-1)


def _hide_padding(tensor: Tensor, mask: Tensor | None) -> Tensor:
    return tensor if mask is None else (tensor * mask).to(tensor.dtype)


def _prefers_kernels(tensor: Tensor) -> bool:
    return tensor.is_cuda and all(map(is_installed, ("mamba_ssm", "causal_conv1d")))
