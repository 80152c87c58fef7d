"""The tensors of a converted hybrid under the names of a class of transformers.

What lies inside a mixer is renamed by `models.stock_parts`. Qwen3-Next also computes with other
numbers, into which ours are folded:

    norms        x (1 + w') / rms(x)                      w' = w - 1
    attention    W_o' (y * sigmoid(W_g x))                W_g = 0, so W_o' = 2 W_o
    projections  queries with the gate, q | k | v | z, b | a: interleaved by head
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from manticore.conversion.configuration_converted import ConvertedConfig
from manticore.models.stock import NoStockClassError
from manticore.models.stock_parts import renamed

Tensors = Mapping[str, Tensor]
_STEM = {"model.embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}


@dataclass(frozen=True, kw_only=True)
class HybridNames:
    """Where a class has the parts of a layer."""

    norms: dict[str, tuple[str, str]]
    """Mixer -> its norm, and the norm of the MLP."""
    mixers: dict[str, str]
    """Mixer -> its module."""
    mlp: str
    """The MLP's module."""
    final_norm: str = "model.norm"
    """The norm before the head."""
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    """What is done to a layer under its new names."""


def hybrid_tensors(
    names: HybridNames, state: Tensors, config: ConvertedConfig
) -> dict[str, Tensor]:
    """All tensors of a converted model, renamed."""
    stem = {**_STEM, "model.norm": names.final_norm}
    found = {f"{stem[n]}.weight": state[f"{n}.weight"] for n in stem if f"{n}.weight" in state}
    for index, described in enumerate(config.layers):
        prefix = f"model.layers.{index}."
        layer = names.change(_layer(names, _below(state, prefix), described["mixer"]))
        found |= {f"{prefix}{name}": value for name, value in layer.items()}
    return found


def qwen3_next_tensors(state: Tensors, config: ConvertedConfig) -> dict[str, Tensor]:
    """As above, with the numbers that Qwen3-Next computes with."""
    found = hybrid_tensors(NAMES["qwen3_next"], state, config)
    block = config.block_spec
    for index, (described, spec) in enumerate(zip(config.layers, config.specs(), strict=True)):
        stem = f"model.layers.{index}."
        if described["mixer"] == "attention":
            _add_gate(found, f"{stem}self_attn.", block.head_dim)
        else:
            n_heads: int = spec.n_heads  # type: ignore[attr-defined]  # gated DeltaNet's
            _interleave(found, f"{stem}linear_attn.", n_heads)
    centred = ("layernorm.weight", "model.norm.weight", "q_norm.weight", "k_norm.weight")
    return {k: _minus_one(k, v) if k.endswith(centred) else v for k, v in found.items()}


def _layer(names: HybridNames, layer: Tensors, mixer: str) -> dict[str, Tensor]:
    mixer_norm, mlp_norm = names.norms[mixer]
    parts = {
        mixer_norm: _below(layer, "mixer_norm."),
        mlp_norm: _below(layer, "mlp_norm."),
        names.mlp: renamed("mlp", _below(layer, "mlp.")),
        **_branches(names, _below(layer, "mixer."), mixer),
    }
    return {f"{part}.{name}": v for part, found in parts.items() for name, v in found.items()}


def _branches(names: HybridNames, tensors: Tensors, mixer: str) -> dict[str, dict[str, Tensor]]:
    """The modules of a token mixer; attention and the Mamba-2 beside it are two."""
    if mixer != "attention-mamba2":
        return {names.mixers[mixer]: renamed(mixer, tensors)}
    attention = {name: v for name, v in tensors.items() if not name.startswith("mamba2.")}
    return {
        names.mixers["attention"]: renamed("attention", attention),
        names.mixers["mamba2"]: renamed("mamba2", _below(tensors, "mamba2.")),
    }


def _below(state: Tensors, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _granite_mlp(layer: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gate and up are one matrix there."""
    gate, up, down = (layer.pop(f"shared_mlp.{n}_proj.weight") for n in ("gate", "up", "down"))
    return layer | {
        "shared_mlp.input_linear.weight": torch.cat([gate, up]),
        "shared_mlp.output_linear.weight": down,
    }


def _lfm2_names(layer: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other words for the same parts."""
    for ours, theirs in _LFM2_WORDS.items():
        layer = {name.replace(ours, theirs): value for name, value in layer.items()}
    return layer


def _add_gate(found: dict[str, Tensor], stem: str, head_dim: int) -> None:
    """A gate of sigmoid(0), which is a half, and an output map that takes it back."""
    for leaf in ("weight", "bias"):
        if f"{stem}q_proj.{leaf}" in found:
            queries = found[f"{stem}q_proj.{leaf}"].unflatten(0, (-1, head_dim))
            found[f"{stem}q_proj.{leaf}"] = torch.cat(
                [queries, torch.zeros_like(queries)], dim=1
            ).flatten(0, 1)
    found[f"{stem}o_proj.weight"] = 2 * found[f"{stem}o_proj.weight"]


def _interleave(found: dict[str, Tensor], stem: str, n_heads: int) -> None:
    """One matrix of q, k, v and the gate z, one of the strength b and the step a, head by head."""
    for new, parts in (("in_proj_qkvz", "qkvg"), ("in_proj_ba", "ba")):
        rows = [found.pop(f"{stem}{part}_proj.weight") for part in parts]
        by_head = torch.cat([matrix.unflatten(0, (n_heads, -1)) for matrix in rows], dim=1)
        found[f"{stem}{new}.weight"] = by_head.flatten(0, 1)
    found[f"{stem}norm.weight"] = found.pop(f"{stem}o_norm.weight")
    found[f"{stem}out_proj.weight"] = found.pop(f"{stem}o_proj.weight")


def _minus_one(name: str, weight: Tensor) -> Tensor:
    """A norm's weight counted from one; refused where its dtype has no such number."""
    centred = weight - 1
    if weight.dtype != torch.float32 and not torch.equal(centred.float() + 1, weight.float()):
        raise NoStockClassError(
            f"qwen3_next keeps norm weights less one, and {weight.dtype} has no such number for "
            f"some in {name}. Save the model in float32 and export that."
        )
    return centred


_LFM2_WORDS = {
    "feed_forward.gate_proj": "feed_forward.w1",
    "feed_forward.up_proj": "feed_forward.w3",
    "feed_forward.down_proj": "feed_forward.w2",
    "self_attn.o_proj": "self_attn.out_proj",
    "q_norm": "q_layernorm",
    "k_norm": "k_layernorm",
}
_LFM2_NORMS = ("operator_norm", "ffn_norm")
_LLAMA_NORMS = ("input_layernorm", "post_attention_layernorm")
_BAMBA_NORMS = ("input_layernorm", "pre_ff_layernorm")
_OLMO_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
NAMES: dict[str, HybridNames] = {
    "granitemoehybrid": HybridNames(
        norms={"attention": _LLAMA_NORMS, "mamba2": _LLAMA_NORMS},
        mixers={"attention": "self_attn", "mamba2": "mamba"},
        mlp="shared_mlp",
        change=_granite_mlp,
    ),
    "bamba": HybridNames(
        norms={"attention": _BAMBA_NORMS, "mamba2": _BAMBA_NORMS},
        mixers={"attention": "self_attn", "mamba2": "mamba"},
        mlp="feed_forward",
        final_norm="model.final_layernorm",
    ),
    "falcon_h1": HybridNames(
        norms={"attention-mamba2": _BAMBA_NORMS},
        mixers={"attention": "self_attn", "mamba2": "mamba"},
        mlp="feed_forward",
        final_norm="model.final_layernorm",
    ),
    "jamba": HybridNames(
        norms={"attention": _BAMBA_NORMS, "normed-mamba": _BAMBA_NORMS},
        mixers={"attention": "self_attn", "normed-mamba": "mamba"},
        mlp="feed_forward",
        final_norm="model.final_layernorm",
    ),
    "olmo_hybrid": HybridNames(
        norms={"attention": _OLMO_NORMS, "gated-deltanet": _LLAMA_NORMS},
        mixers={"attention": "self_attn", "gated-deltanet": "linear_attn"},
        mlp="mlp",
    ),
    "qwen3_next": HybridNames(
        norms={"attention": _LLAMA_NORMS, "gated-deltanet": _LLAMA_NORMS},
        mixers={"attention": "self_attn", "gated-deltanet": "linear_attn"},
        mlp="mlp",
    ),
    "lfm2": HybridNames(
        norms={"attention": _LFM2_NORMS, "gated-conv": _LFM2_NORMS},
        mixers={"attention": "self_attn", "gated-conv": "conv"},
        mlp="feed_forward",
        final_norm="model.embedding_norm",
        change=_lfm2_names,
    ),
}
