"""How the tensors of a converted model start that inherit nothing, in words for the plan."""

from __future__ import annotations

from manticore.conversion.heads import HeadsSpec
from manticore.mixers.interface import MixerSpec

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
}


def first_weights(name: str, spec: MixerSpec | None) -> str:
    """How a tensor starts that inherits nothing."""
    leaf = name.partition(".mixer.")[2]
    if spec is not None and not isinstance(spec, HeadsSpec):
        return "as the mixer starts"
    if leaf in _STARTS:
        return _STARTS[leaf]
    if "norm" in name:
        return "zeros" if name.endswith("bias") else "ones"
    if name.startswith(("model.embed_tokens.", "model.positions.")):
        return "normal, standard deviation initializer_range"
    return "zeros" if name.endswith("bias") else "uniform, up to 1 / sqrt(inputs)"
