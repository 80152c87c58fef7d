"""flash-linear-attention's own models on the CPU: its kernels replaced by its own references.

Its kernels need a GPU. Here its classes, configurations and wiring run as they are, and in place of
a kernel stands what the library itself holds it against in its tests: the naive recurrences beside
the kernels, its reference of rotation and norm, and torch's convolution and softmax attention.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor


def load_with_fla(folder: Path) -> Any:
    """The model as fla's class, which must know every tensor and miss none."""
    from transformers import AutoModelForCausalLM

    importlib.import_module("fla")
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    assert type(model).__module__.startswith("fla.")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


@pytest.fixture
def references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put fla's references where its kernels are called."""
    pytest.importorskip("fla")
    layers = {
        "multiscale_retention": {"fused_recurrent_retention": _retention},
        "gla": {"fused_recurrent_gla": _gla},
        "delta_net": {"fused_recurrent_delta_rule": _delta},
        "gated_deltanet": {
            "fused_recurrent_gated_delta_rule": _gated_delta,
            "causal_conv1d": lambda x, weight, bias, activation, backend: (
                _convolved(x, weight, activation), None,
            ),
        },
        "linear_attn": {"fused_recurrent_linear_attn": _linear},
        "attn": {"flash_attn_func": _attention},
        "rwkv6": {"fused_recurrent_rwkv6": _rwkv6, "token_shift": _token_shift},
    }  # fmt: skip
    for module, functions in layers.items():
        found = importlib.import_module(f"fla.layers.{module}")
        for name, function in functions.items():
            assert hasattr(found, name)
            monkeypatch.setattr(found, name, function)
    modules = importlib.import_module("fla.modules")
    for name, forward in (
        ("RMSNorm", _rms_norm),
        ("LayerNorm", _layer_norm),
        ("GroupNorm", _group_norm),
        ("FusedRMSNormGated", _gated_norm),
        ("RotaryEmbedding", _rotary),
        ("ShortConvolution", _short_convolution),
    ):
        monkeypatch.setattr(getattr(modules, name), "forward", forward)
    rwkv6 = importlib.import_module("fla.models.rwkv6.modeling_rwkv6")
    monkeypatch.setattr(rwkv6, "token_shift", _token_shift)
    mamba2 = importlib.import_module("fla.layers.mamba2")
    monkeypatch.setattr(mamba2.RMSNormGated, "forward", _norm_of_gated)
    activations = importlib.import_module("fla.modules.activations").ACT2FN
    for name, function in (
        ("swish", F.silu), ("silu", F.silu), ("sqrelu", lambda x: F.relu(x).square()),
    ):  # fmt: skip
        monkeypatch.setitem(activations, name, function)
    mlp = importlib.import_module("fla.modules.mlp")
    monkeypatch.setattr(mlp, "swiglu_linear", lambda x, y, w, b: F.linear(F.silu(x) * y, w, b))


def _naive(family: str, name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(importlib.import_module(f"fla.ops.{family}.naive"), name)
    return found


def _by_head(*tensors: Tensor) -> list[Tensor]:
    return [tensor.transpose(1, 2) for tensor in tensors]


def _l2(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def _retention(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> tuple[Tensor, None]:
    y = _naive("retention", "naive_retention")(*_by_head(q, k, v))
    return y.transpose(1, 2), None


def _gla(q: Tensor, k: Tensor, v: Tensor, gk: Tensor, **_: Any) -> tuple[Tensor, None]:
    return _naive("gla", "naive_recurrent_gla")(q, k, v, gk)[0], None


def _delta(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, use_qk_l2norm_in_kernel: bool, **_: Any
) -> tuple[Tensor, None]:
    if use_qk_l2norm_in_kernel:
        q, k = _l2(q), _l2(k)
    y = _naive("delta_rule", "delta_rule_recurrence")(*_by_head(q, k, v, beta))[0]
    return y.transpose(1, 2), None


def _gated_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    allow_neg_eigval: bool,
    **switches: Any,
) -> tuple[Tensor, None]:
    for name in ("qk_l2norm", "gate", "beta_sigmoid"):
        assert switches[f"use_{name}_in_kernel"]
    gate = _naive_gate()(g, A_log, dt_bias)
    strength = beta.sigmoid() * (2 if allow_neg_eigval else 1)
    naive = _naive("gated_delta_rule", "naive_recurrent_gated_delta_rule")
    return naive(_l2(q), _l2(k), v, strength, gate)[0], None


def _naive_gate() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    gate = importlib.import_module("fla.ops.gated_delta_rule.gate")
    found: Callable[[Tensor, Tensor, Tensor], Tensor] = gate.naive_gdn_gate
    return found


def _linear(q: Tensor, k: Tensor, v: Tensor, normalize: bool, **_: Any) -> tuple[Tensor, None]:
    return _naive("linear_attn", "naive_recurrent_linear_attn")(q, k, v, normalize=normalize)[
        0
    ], None


def _rwkv6(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, scale: float, **_: Any
) -> tuple[Tensor, None]:
    naive = importlib.import_module("fla.ops.rwkv6.recurrent_naive").naive_recurrent_rwkv6
    return naive(*_by_head(r, k, v, w), u, scale=scale)[0].transpose(1, 2), None


def _token_shift(x: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    shifted: Tensor = importlib.import_module("fla.modules.token_shift").token_shift_ref(x)
    return shifted


def _attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window_size: tuple[int, int]
) -> Tensor:
    assert causal
    # flash-attention's window: so many positions to the left, besides the token itself.
    place = torch.arange(q.shape[1])
    distance = place[:, None] - place
    visible = distance >= 0
    if window_size[0] >= 0:
        visible &= distance <= window_size[0]
    y = F.scaled_dot_product_attention(*_by_head(q, k, v), attn_mask=visible, enable_gqa=True)
    return y.transpose(1, 2)


def _rms_norm(self: Any, x: Tensor, residual: Tensor | None = None, prenorm: bool = False) -> Any:
    reference = importlib.import_module("fla.modules.norm.layernorm").rms_norm_ref
    return reference(x, self.weight, None, residual=residual, eps=self.eps, prenorm=prenorm)


def _layer_norm(self: Any, x: Tensor, residual: Tensor | None = None, prenorm: bool = False) -> Any:
    reference = importlib.import_module("fla.modules.norm.layernorm").layer_norm_ref
    return reference(x, self.weight, self.bias, residual, eps=self.eps, prenorm=prenorm)


def _group_norm(self: Any, x: Tensor) -> Any:
    reference = importlib.import_module("fla.modules.norm.layernorm").group_norm_ref
    return reference(x, self.weight, self.bias, self.num_groups, eps=self.eps)


def _norm_of_gated(self: Any, x: Tensor, z: Tensor) -> Any:
    reference = importlib.import_module("fla.modules.norm.layernorm_gated").rms_norm_ref
    return reference(
        x, self.weight, None, z=z, eps=self.eps, group_size=self.group_size,
        norm_before_gate=self.norm_before_gate,
    )  # fmt: skip


def _gated_norm(self: Any, x: Tensor, g: Tensor) -> Tensor:
    assert self.activation in ("swish", "silu")
    normed: Tensor = _rms_norm(self, x)
    return normed * F.silu(g)


def _rotary(self: Any, q: Tensor, k: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    assert options["seqlen_offset"] == 0
    ops = importlib.import_module("fla.modules.rotary.ops")
    self._update_cos_sin_cache(q.shape[1], device=q.device, dtype=q.dtype)
    cosine, sine = self._cos_cached[: q.shape[1]], self._sin_cached[: q.shape[1]]
    turned = [ops.rotary_embedding_ref(x, cosine, sine, self.interleaved) for x in (q, k)]
    return turned[0], turned[1]


def _short_convolution(self: Any, x: Tensor, **_: Any) -> tuple[Tensor, None]:
    return _convolved(x, self.weight.squeeze(1), self.activation), None


def _convolved(x: Tensor, weight: Tensor, activation: str | None) -> Tensor:
    channels, taps = weight.shape
    padded = F.pad(x.transpose(1, 2), (taps - 1, 0))
    y = F.conv1d(padded, weight.unsqueeze(1), groups=channels).transpose(1, 2)
    return y if activation is None else F.silu(y)
