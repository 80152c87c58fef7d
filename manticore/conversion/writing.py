"""Write canonical blocks as tensors of a stock class: the inverse of `reading`.

The rows of `sources` say where tensors lie; here their changes are undone. Granite's hybrids are
no source, so their places are written here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from manticore.conversion.block_spec import BlockSpec
from manticore.conversion.reading import places
from manticore.conversion.sources import SOURCES

Tensors = Mapping[str, Tensor]
_LEAVES = ("weight", "bias")
_QKV = ("q", "k", "v")


def source_tensors(row: str, state: Tensors, block: BlockSpec) -> dict[str, Tensor]:
    """The tensors of an all-attention model under the names of a row of `SOURCES`.

    Args:
        row: key of `SOURCES`.
        state: the state dict of a `ConvertedForCausalLM` that keeps all its attention.
    """
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)  # stock name -> change -> tensor
    for canonical, module, change in places(SOURCES[row], block):
        for leaf in _LEAVES:
            if f"{canonical}.{leaf}" in state:
                parts[f"{module}.{leaf}"][change] = state[f"{canonical}.{leaf}"]
    return {name: _undo(changes, block) for name, changes in parts.items()}


def _undo(changes: dict[str, Tensor], block: BlockSpec) -> Tensor:
    """One tensor of the source from its canonical parts."""
    first = next(iter(changes))
    if first.startswith("neox"):
        # Rows lie as (head, q | k | v, channel).
        heads = [
            changes[f"neox-{part}"].unflatten(0, (block.n_heads, block.head_dim)) for part in _QKV
        ]
        return torch.stack(heads, dim=1).flatten(0, 2)
    if first.startswith("gpt2"):
        fused = torch.cat([changes[f"gpt2-{part}"] for part in _QKV])
        return fused.t()
    if first == "transposed":
        return changes[first].t()
    return halves_to_neighbours(changes[first], block) if first == "halves" else changes[first]


def halves_to_neighbours(rows: Tensor, block: BlockSpec) -> Tensor:
    """Reorder rows of q or k, so that rotated pairs (i, i + R/2) become (2i, 2i + 1)."""
    half = len(block.rotary_frequencies)
    by_head = rows.unflatten(0, (-1, block.head_dim))
    pairs = [index for i in range(half) for index in (i, i + half)]
    return by_head[:, [*pairs, *range(2 * half, block.head_dim)]].flatten(0, 1)


_GRANITE_STEM = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
_GRANITE_NORMS = {"mixer_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_GRANITE_ATTENTION = {
    f"mixer.{ours}.weight": f"self_attn.{theirs}_proj.weight"
    for ours, theirs in {"q": "q", "k": "k", "v": "v", "output": "o"}.items()
}
_GRANITE_MAMBA = {
    "mixer.input.weight": "mamba.in_proj.weight",
    "mixer.conv_bias": "mamba.conv1d.bias",
    "mixer.log_rate": "mamba.A_log",
    "mixer.step_bias": "mamba.dt_bias",
    "mixer.skip": "mamba.D",
    "mixer.norm_weight": "mamba.norm.weight",
    "mixer.output.weight": "mamba.out_proj.weight",
}


def granite_tensors(state: Tensors, is_mamba: list[bool]) -> dict[str, Tensor]:
    """The tensors of a gated, bias-free model of attention and Mamba-2 as a Granite hybrid's."""
    found = {name: state[name] for name in _GRANITE_STEM if name in state}
    for index, mamba in enumerate(is_mamba):
        prefix = f"model.layers.{index}."
        layer = {
            name.removeprefix(prefix): value
            for name, value in state.items()
            if name.startswith(prefix)
        }
        found |= {f"{prefix}{name}": value for name, value in _granite_layer(layer, mamba).items()}
    return found


def _granite_layer(layer: Tensors, mamba: bool) -> dict[str, Tensor]:
    renamed = _GRANITE_MAMBA if mamba else _GRANITE_ATTENTION
    found = {theirs: layer[ours] for ours, theirs in renamed.items()}
    if mamba:
        # (channels, taps) here, (channels, 1, taps) in torch's convolution.
        channels = layer["mixer.conv_bias"].shape[0]
        found["mamba.conv1d.weight"] = layer["mixer.conv.weight"].reshape(channels, 1, -1)
    for ours, theirs in _GRANITE_NORMS.items():
        found[f"{theirs}.weight"] = layer[f"{ours}.weight"]
    gate_and_up = [layer["mlp.gate.weight"], layer["mlp.up.weight"]]
    found["shared_mlp.input_linear.weight"] = torch.cat(gate_and_up)
    found["shared_mlp.output_linear.weight"] = layer["mlp.down.weight"]
    return found
