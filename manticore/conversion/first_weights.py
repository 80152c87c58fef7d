"""How the tensors of a converted model start that inherit nothing, and in words for the plan.

Gates at a mixer's output start at one where a bias can hold a one: a random gate halves and flips
the signals that a copied W_o expects. Published mixers keep their own start but for RWKV-7, whose
gate of low rank can start there, too.
"""

from __future__ import annotations

import torch
from torch import nn

from manticore.conversion.heads import HeadsSpec
from manticore.mixers.interface import MixerSpec
from manticore.mixers.rwkv7 import RWKV7, RWKV7Spec

_STARTS = {
    "gate.weight": "zeros, so that the gate does not depend on the token",
    "gate.bias": "silu of it is 1",
    "gain": "ones",
    "decay_up.weight": "zeros, so that the decays do not depend on the token",
    "decay_up.bias": "memories spread over the range",
    "decay.weight": "zeros, so that the decays do not depend on the token",
    "decay.bias": "memories spread over the range",
    "time_step.weight": "zeros, so that the decays do not depend on the token",
    "time_step.bias": "memories spread over the range",
    "log_rate": "zeros: decay and write have the same step",
    "skip": "zeros: attention has no skip",
    "strength.weight": "zeros, so that the strength does not depend on the token",
    "strength.bias": "zeros: strength one half",
    "q_map.weight": "identity",
    "k_map.weight": "identity",
    "mamba2.output.weight": "zeros, so that attention starts alone",
}


@torch.no_grad()
def open_gates(model: nn.Module) -> None:
    """Let the output gates of RWKV-7, B sigmoid(A x), start at one.

    A starts at zero, so sigmoid gives 1/2 and each row of B has to sum to 2. It is shifted there
    and keeps what sets its columns apart, by which the gate learns.
    """
    for mixer in model.modules():
        if isinstance(mixer, RWKV7):
            up = mixer.gate.up.weight  # (D, rank)
            up.add_((2 - up.sum(1, keepdim=True)) / up.shape[1])


def first_weights(name: str, spec: MixerSpec | None) -> str:
    """How a tensor starts that inherits nothing."""
    leaf = name.partition(".mixer.")[2]
    if isinstance(spec, RWKV7Spec) and leaf == "gate.up.weight":
        return "as the mixer starts, shifted so that the gate is 1"
    if spec is not None and not isinstance(spec, HeadsSpec):
        return "as the mixer starts"
    if leaf in _STARTS:
        return _STARTS[leaf]
    if leaf.startswith("mamba2."):
        return "as Mamba-2 starts"
    if "norm" in name:
        return "zeros" if name.endswith("bias") else "ones"
    if name.startswith(("model.embed_tokens.", "model.positions.")):
        return "normal, standard deviation initializer_range"
    return "zeros" if name.endswith("bias") else "uniform, up to 1 / sqrt(inputs)"
