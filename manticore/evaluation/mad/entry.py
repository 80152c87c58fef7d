"""An entry: one architecture that takes part, as plain data and as freshly built models.

It is a stack of mixers by name, a stack with a user's own module in it, or any Hugging Face
configuration. Its data say everything that decides a result, so they name the trials' records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

from manticore.evaluation.mad.entry_hf import build_hf, check_hf, hf_config, hf_costs
from manticore.evaluation.mad.entry_models import (
    MODULE,
    PLACEHOLDER,
    build_mixers,
    count_built,
    mixer_config,
)
from manticore.evaluation.mad.own_class import load_class, source_hash
from manticore.evaluation.mad.settings import Setting

if TYPE_CHECKING:
    import torch
    from torch import nn

REFERENCE = {"vocab_size": 16, "seq_len": 128}
"""Where parameters, state and FLOPs are counted, whatever the protocol's settings are."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One architecture in a sweep: a stack of mixers, or a Hugging Face configuration."""

    name: str
    """What people call it; not part of its identity."""
    layers: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    """{"mixer": name, ...settings} from the first to the last; empty for a Hugging Face config."""
    d_model: int = 128
    """Width of the residual stream."""
    module: str | None = None
    """"pkg:Class" behind the mixer called "module": Class(d_model), from and to (B, T, D)."""
    hf_config: Mapping[str, Any] | None = field(default=None, hash=False)
    """A Hugging Face configuration as in its config.json, instead of layers."""

    def __post_init__(self) -> None:
        if bool(self.layers) == (self.hf_config is not None):
            raise ValueError("Give either layers or a Hugging Face configuration.")
        uses = any(layer["mixer"] == MODULE for layer in self.layers)
        if uses and not self.module:
            raise ValueError(
                "Layer 'module' stands for a class of yours. Name it with --module pkg:Class."
            )
        if self.module and not uses:
            raise ValueError(
                f"--module {self.module} is not used: no layer is called 'module'. Put it among "
                "the layers, as in --layers module swiglu module swiglu."
            )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the model, defaults of the mixers included, as JSON.

        Raises:
            ValueError: a mixer that does not exist, or settings that contradict.
        """
        if self.hf_config is not None:
            return {"hf_config": hf_config(self.hf_config, 16).to_dict()}
        described: dict[str, Any] = {"layers": self._resolved(), "d_model": self.d_model}
        if self.module:
            loaded = load_class(self.module)
            described["module"] = {"class": self.module, "sha256": source_hash(loaded)}
        return described

    def build(self, setting: Setting, compat: str, generator: torch.Generator) -> nn.Module:
        """A fresh model for a task: a language model, or an autoencoder for compression.

        Args:
            generator: draws every weight.
        """
        vocab_size = int(setting.options["vocab_size"])
        is_autoencoder = setting.task == "compression"
        if self.hf_config is not None:
            return build_hf(self.hf_config, vocab_size, is_autoencoder, compat, generator)
        config = mixer_config(self, vocab_size, compat, int(setting.options["seq_len"]))
        return build_mixers(self, config, is_autoencoder, generator)

    def check(self, settings: Sequence[Setting]) -> None:
        """Raise before any compute when the architecture cannot do one of the settings."""
        _ = self.identity
        if self.hf_config is None:
            return
        longest = max(int(setting.options["seq_len"]) for setting in settings)
        check_hf(self.name, self.hf_config, longest)

    def costs(
        self, vocab_size: int = REFERENCE["vocab_size"], seq_len: int = REFERENCE["seq_len"]
    ) -> dict[str, int | None]:
        """Parameters, mixing state (and its part that does not grow) and forward FLOPs per token.

        State and FLOPs are None where nobody wrote down the formula: for a user's module, and for
        a Hugging Face configuration of an unknown family.
        """
        if self.hf_config is not None:
            return hf_costs(self.hf_config, vocab_size, seq_len)
        if self.module:
            unknown = dict.fromkeys(("state", "fixed_state", "flops_per_token"))
            return {"parameters": count_built(self, vocab_size), **unknown}
        from manticore.models.architectures import architecture_costs

        found = architecture_costs(
            [dict(x) for x in self.layers], self.d_model, seq_len, vocab_size
        )
        return {
            "parameters": found.parameters,
            "state": found.mixing_state,
            "fixed_state": found.fixed_mixing_state,
            "flops_per_token": found.flops_per_token,
        }

    def token_mixers(self) -> list[str]:
        """Names of the different token mixers, in order; a user's module counts as one."""
        if not self.layers:
            return []
        pairs = zip(self.layers, mixer_config(self, 16).specs(), strict=True)
        names = [
            str(layer["mixer"])
            for layer, spec in pairs
            if layer["mixer"] == MODULE or spec.kind == "token"
        ]
        return list(dict.fromkeys(names))

    def _resolved(self) -> list[dict[str, Any]]:
        from manticore.models.configuration_mixer_lm import layer_spec

        resolved = []
        for layer in self.layers:
            if layer["mixer"] == MODULE:
                resolved.append(dict(layer))
                continue
            settings = layer_spec(dict(layer), self.d_model).settings()
            settings.pop("d_model", None)
            settings.pop("kernel", None)  # decides how fast, not what comes out
            if "max_length" not in layer:
                settings.pop("max_length", None)  # each task's own: see `mixer_config`
            resolved.append({"mixer": layer["mixer"], **settings})
        return resolved


def entry_of_layers(
    layers: Sequence[Any], d_model: int, name: str | None = None, module: str | None = None
) -> Entry:
    """An entry from a preset's name, or from layers: names, names with settings, dictionaries.

    Args:
        layers: as `manticore.models.architectures.architecture` takes them, and "module".

    Raises:
        ValueError: an unknown name or setting.
    """
    from manticore.models.architectures import architecture, find_preset

    preset = find_preset(layers[0]) if len(layers) == 1 and isinstance(layers[0], str) else None
    held = [dict(PLACEHOLDER) if layer == MODULE else layer for layer in layers]
    described = architecture(preset or held)
    if not preset:
        pairs = zip(layers, described, strict=True)
        described = [{"mixer": MODULE} if given == MODULE else layer for given, layer in pairs]
    return Entry(
        name=name or preset or layers_title([_layer_title(layer) for layer in described]),
        layers=tuple(described),
        d_model=d_model,
        module=module,
    )


def _layer_title(layer: Mapping[str, Any]) -> str:
    settings = ",".join(f"{key}={value}" for key, value in layer.items() if key != "mixer")
    return f"{layer['mixer']}:{settings}" if settings else str(layer["mixer"])


def layers_title(names: Sequence[str]) -> str:
    """A short name of a stack: "(hyena, swiglu) x 2"."""
    for size in range(1, len(names) // 2 + 1):
        times = len(names) // size
        if len(names) % size == 0 and list(names[:size]) * times == list(names):
            return f"({', '.join(names[:size])}) x {times}" if size > 1 else f"{names[0]} x {times}"
    runs = [(name, len(list(same))) for name, same in groupby(names)]
    return ", ".join(name if n == 1 else f"{name} x {n}" for name, n in runs)
