"""RWKV-4's attention with our scan: same parameters, same numbers, linear time backward.

transformers' loop writes every step into one tensor, and the backward pass copies the gradient of
that whole tensor once for each step: a part of its time grows with the square of the length
(`benchmarks/results/families.json`). `fast_paths.bind_fast_paths` gives instances this
subclass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.rwkv import modeling_rwkv
from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention

from manticore.mixers.precision import widen
from manticore.mixers.wkv4_scan import wkv4_scan


class FastRwkvSelfAttention(RwkvSelfAttention):
    """RWKV-4's time mixing for whole sequences; a state goes to transformers' own."""

    scan_name = "wkv_scan"

    def forward(self, hidden: Tensor, state: Any = None, use_cache: bool = False) -> Any:
        """Mix tokens along time; (batch, seq, d_model) to the same, and the state as given."""
        if state is not None or _prefers_kernel(hidden):
            stock: Any = super()
            return stock.forward(hidden, state=state, use_cache=use_cache)
        receptance, key, value, _ = self.extract_key_value(hidden)
        decay = -torch.exp(widen(self.time_decay))
        mixed, _ = wkv4_scan(key, value, decay, self.time_first)
        return self.output(receptance * mixed), None

    def scan_in_use(self) -> str:
        """Whose scan runs where the weights are now."""
        return "cuda-kernel" if _prefers_kernel(self.time_decay) else "torch-step"


FAST_RWKV: dict[type[nn.Module], type[nn.Module]] = {RwkvSelfAttention: FastRwkvSelfAttention}


def _prefers_kernel(tensor: Tensor) -> bool:
    return tensor.is_cuda and modeling_rwkv.rwkv_cuda_kernel is not None
