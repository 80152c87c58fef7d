"""Named architectures of two blocks, what they cost, and whether two of them may be compared.

Poli et al., 2024 (arXiv:2403.17844), compare architectures of two blocks, each a token mixer and a
channel mixer, at equal width, equal depth, about equal parameters and equal state: 4,096 numbers
summed over the token mixers. Attention is exempt, since its state grows with the sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from manticore.config.errors import did_you_mean
from manticore.mixers.interface import MixerSpec
from manticore.mixers.table import TABLE
from manticore.models.configuration_mixer_lm import Layer, as_layer, layer_spec

ISO_STATE = 4_096
"""Numbers of fixed mixing state in a model of the paper's comparison."""
ISO_PARAMETERS = 1.25
"""Largest ratio of parameters at which two architectures count as equal."""
ISO_FLOPS = 1.5
"""Largest ratio of forward FLOPs per token at which two architectures count as equal."""
SEQ_LEN = 128
VOCAB_SIZE = 16


def _striped(token_mixer: str, channel_mixer: str = "swiglu") -> tuple[str, ...]:
    return (token_mixer, channel_mixer, "mh-attention", channel_mixer)


PRESETS: dict[str, tuple[str, ...]] = {
    "Transformer": ("mh-attention", "swiglu") * 2,
    "SlidingTransformer": ("mh-sliding-attention", "swiglu") * 2,
    "LinearAttention": ("mh-linear-attention", "swiglu") * 2,
    "GLA": ("mh-gated-linear-attention", "swiglu") * 2,
    "Retention": ("retention", "swiglu") * 2,
    "DeltaNet": ("deltanet", "swiglu") * 2,
    "GatedDeltaNet": ("gated-deltanet", "swiglu") * 2,
    "RWKV5": ("rwkv5", "rwkv5-channel") * 2,
    "RWKV6": ("rwkv6", "rwkv6-channel") * 2,
    "RWKV7": ("rwkv7", "rwkv7-channel") * 2,
    # A Mamba block is token and channel mixer in one, so two layers stand for a block.
    "Mamba": ("mamba",) * 4,
    "Mamba2": ("mamba2",) * 4,
    "Hyena": ("hyena", "swiglu") * 2,
    "MultiHeadHyena": ("mh-hyena", "swiglu") * 2,
    "HyenaExpertsMoE": ("hyena-experts", "moe-mlp") * 2,
    "StripedHyena": _striped("hyena"),
    "StripedMHHyena": _striped("mh-hyena"),
    "StripedMHHyenaMoE": _striped("mh-hyena", "moe-mlp"),
    "StripedHyenaExpertsMoE": _striped("hyena-experts", "moe-mlp"),
    "StripedMamba": ("mamba", "mamba", "mh-attention", "swiglu"),
    "StripedGLA": _striped("mh-gated-linear-attention"),
    "StripedGatedDeltaNet": _striped("gated-deltanet"),
    # Park et al., 2024 (arXiv:2402.04248): Mamba instead of positions and of channel mixers.
    "MambaFormer": ("mamba", "mh-attention", "mamba", "mh-attention", "mamba"),
    # No token mixer at all: what a model does without seeing other positions.
    "SwiGLU": ("swiglu",) * 4,
}


def architecture(spec: Layer | Sequence[Layer]) -> list[dict[str, Any]]:
    """The layers of an architecture, as `MixerLMConfig(layers=...)` takes them.

    Args:
        spec: the name of a preset; or the layers, as a list or as words in one string. A layer is
            a mixer's name, a name with settings, "mh-attention:n_heads=4,window=33", or a
            dictionary {"mixer": name, ...}. One single name is a preset where there is one:
            "mamba" is the four layers of Mamba; write {"mixer": "mamba"} for a single one.

    Raises:
        ValueError: an unknown name or setting, with the closest known ones.
    """
    if isinstance(spec, dict):
        return [as_layer(spec)]
    words = spec.split() if isinstance(spec, str) else list(spec)
    if len(words) == 1 and isinstance(words[0], str):
        preset = find_preset(words[0])
        if preset is not None:
            return [as_layer(name) for name in PRESETS[preset]]
    if not words:
        raise ValueError(f"An architecture needs at least one layer. Presets: {_names(PRESETS)}.")
    return [_layer(word) for word in words]


def find_preset(name: str) -> str | None:
    """The preset of this name, whatever its case, dashes or underscores; None: there is none."""
    return {_plain(known): known for known in PRESETS}.get(_plain(name))


@dataclass(frozen=True, kw_only=True)
class ArchitectureCosts:
    """What a language model of an architecture costs, from formulas."""

    layers: tuple[str, ...]
    """Names of the mixers."""
    d_model: int
    seq_len: int
    vocab_size: int
    parameters: int
    """Of the whole language model: layers, norms, token table, head."""
    state: int
    """Numbers that one sequence keeps after `seq_len` tokens, in all layers."""
    mixing_state: int
    """The same without short convolutions and token shifts."""
    fixed_mixing_state: int
    """The part of the mixing state that does not grow with the sequence."""
    flops_per_token: int
    """Of the forward pass, the head included, averaged over a sequence."""

    @property
    def has_growing_state(self) -> bool:
        """Whether the state grows with the sequence: full attention, or a full convolution."""
        return self.mixing_state > self.fixed_mixing_state


def architecture_costs(
    layers: Layer | Sequence[Layer],
    d_model: int = 128,
    seq_len: int = SEQ_LEN,
    vocab_size: int = VOCAB_SIZE,
) -> ArchitectureCosts:
    """Cost of an architecture's language model; no weight is made."""
    described = architecture(layers)
    specs = [layer_spec(layer, d_model) for layer in described]
    token_mixers = [spec for spec in specs if spec.kind == "token"]
    norms = (len(specs) + 1) * d_model
    tables = 2 * vocab_size * d_model + vocab_size
    branches = [branch for spec in token_mixers for branch in spec.branches]
    fixed = sum(branch.mixing_state_size(seq_len) for branch in branches if not grows(branch))
    return ArchitectureCosts(
        layers=tuple(layer["mixer"] for layer in described),
        d_model=d_model,
        seq_len=seq_len,
        vocab_size=vocab_size,
        parameters=sum(spec.num_parameters() for spec in specs) + norms + tables,
        state=sum(spec.state_size(seq_len) for spec in specs),
        mixing_state=sum(spec.mixing_state_size(seq_len) for spec in token_mixers),
        fixed_mixing_state=fixed,
        flops_per_token=sum(spec.flops_per_token(seq_len) for spec in specs)
        + 2 * vocab_size * d_model,
    )


def grows(spec: MixerSpec) -> bool:
    """Whether a mixer's state grows without bound; a window's stops growing."""
    return spec.mixing_state_size(1 << 20) < spec.mixing_state_size(1 << 21)


def comparability(a: ArchitectureCosts, b: ArchitectureCosts) -> list[str]:
    """Why the scores of two architectures should not be compared; empty: nothing speaks against it.

    States are compared where both are fixed. Attention is exempt, as in the paper, and with it
    every architecture that has some.
    """
    reasons = []
    for name, shown in (("d_model", "width"), ("seq_len", "length"), ("vocab_size", "vocabulary")):
        mine, theirs = getattr(a, name), getattr(b, name)
        if mine != theirs:
            reasons.append(f"{shown}: {mine:,} against {theirs:,}")
    exempt = a.has_growing_state or b.has_growing_state
    if not exempt and a.fixed_mixing_state != b.fixed_mixing_state:
        reasons.append(
            f"mixing state: {a.fixed_mixing_state:,} against {b.fixed_mixing_state:,} numbers "
            f"(the iso-state rule has {ISO_STATE:,} in each)"
        )
    for name, limit in (("parameters", ISO_PARAMETERS), ("flops_per_token", ISO_FLOPS)):
        mine, theirs = getattr(a, name), getattr(b, name)
        ratio = max(mine, theirs) / min(mine, theirs)
        if ratio > limit:
            shown = name.replace("_", " ").replace("flops", "FLOPs")
            reasons.append(
                f"{shown}: {mine:,} against {theirs:,}, a ratio of {ratio:.2f} (at most {limit:g})"
            )
    return reasons


def _layer(word: Layer) -> dict[str, Any]:
    if isinstance(word, dict):
        layer = as_layer(word)
    else:
        name, _, settings = word.partition(":")
        layer = {"mixer": name, **_settings(word, settings)}
    if layer["mixer"] not in TABLE:
        raise ValueError(_unknown(layer["mixer"]))
    return layer


def _settings(word: str, text: str) -> dict[str, Any]:
    settings = {}
    for part in text.split(",") if text else []:
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise ValueError(
                f"Layer {word!r}: {part!r} is no setting. Write mixer:setting=value,setting=value, "
                "such as mh-attention:n_heads=4."
            )
        settings[key] = _value(value)
    return settings


def _value(text: str) -> Any:
    plain = {"true": True, "false": False, "none": None}
    if text.lower() in plain:
        return plain[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _unknown(name: str) -> str:
    if name in PRESETS:
        return (
            f"{name!r} is a whole architecture, not a layer. Give it alone, or its layers: "
            f'{" ".join(PRESETS[name])}. Where two are compared, a "/" stands between them.'
        )
    hint = did_you_mean(name, [*TABLE, *PRESETS])
    return f"Unknown mixer {name!r}.{hint} Mixers: {_names(TABLE)}. Presets: {_names(PRESETS)}."


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names, key=str.lower))
