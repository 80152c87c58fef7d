"""An entry: one architecture that takes part, as plain data and as freshly built models.

It is a stack of mixers by name, a stack with a user's own module in it, or any Hugging Face
configuration. Its data say everything that decides a result, so they name the trials' records.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manticore.evaluation.mad.settings import Setting

if TYPE_CHECKING:
    import torch
    from torch import nn

MODULE = "module"
"""Name of a user's own module in a list of layers."""
REFERENCE = {"vocab_size": 16, "seq_len": 128}
"""Where parameters, state and FLOPs are counted, whatever the protocol's settings are."""


@dataclass(frozen=True, kw_only=True)
class Entry:
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
            return {"hf_config": _hf_config(self.hf_config, 16).to_dict()}
        described: dict[str, Any] = {"layers": self._resolved(), "d_model": self.d_model}
        if self.module:
            loaded = _load_class(self.module)
            described["module"] = {"class": self.module, "sha256": _source_hash(loaded)}
        return described

    def build(self, setting: Setting, compat: str, generator: torch.Generator) -> nn.Module:
        """A fresh model for a task: a language model, or an autoencoder for compression.

        Args:
            generator: draws every weight.
        """
        vocab_size = int(setting.options["vocab_size"])
        is_autoencoder = setting.task == "compression"
        if self.hf_config is not None:
            return _build_hf(self.hf_config, vocab_size, is_autoencoder, compat, generator)
        config = mixer_config(self, vocab_size, compat, int(setting.options["seq_len"]))
        return _build_mixers(self, config, is_autoencoder, generator)

    def check(self, settings: Sequence[Setting]) -> None:
        """Raise before any compute when the architecture cannot do one of the settings."""
        _ = self.identity
        if self.hf_config is None:
            return
        longest = max(int(setting.options["seq_len"]) for setting in settings)
        limit = getattr(_hf_config(self.hf_config, 16), "max_position_embeddings", None)
        if limit is not None and limit < longest:
            raise ValueError(
                f"{self.name}: max_position_embeddings={limit} is shorter than the longest "
                f"sequence of the protocol, {longest}. Raise it in the configuration, or choose "
                "other tasks with --tasks."
            )

    def costs(
        self, vocab_size: int = REFERENCE["vocab_size"], seq_len: int = REFERENCE["seq_len"]
    ) -> dict[str, int | None]:
        """Parameters, mixing state (and its part that does not grow) and forward FLOPs per token.

        State and FLOPs are None where nobody wrote down the formula: for a user's module, and for
        a Hugging Face configuration of an unknown family.
        """
        if self.hf_config is not None:
            return _hf_costs(self.hf_config, vocab_size, seq_len)
        if self.module:
            unknown = dict.fromkeys(("state", "fixed_state", "flops_per_token"))
            return {"parameters": _count_built(self, vocab_size), **unknown}
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
    held = [dict(_PLACEHOLDER) if layer == MODULE else layer for layer in layers]
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


def mixer_config(
    entry: Entry, vocab_size: int, compat: str = "fixed", seq_len: int | None = None
) -> Any:
    """The configuration of an entry's model; a user's module is held open by a linear map's place.

    A model that is trained on whole sequences wants no cache. A mixer whose filters are stretched
    over a longest length gets the task's, as in mad-lab's benchmark, unless it names one.
    """
    from manticore.models.configuration_mixer_lm import MixerLMConfig, layer_spec

    layers: list[dict[str, Any]] = [
        dict(_PLACEHOLDER if layer["mixer"] == MODULE else layer) for layer in entry.layers
    ]
    if seq_len is not None:
        for layer in layers:
            if hasattr(layer_spec(layer, entry.d_model), "max_length"):
                layer.setdefault("max_length", seq_len)
    return MixerLMConfig(
        layers=layers,
        d_model=entry.d_model,
        vocab_size=vocab_size,
        compat=compat,
        use_cache=False,
    )


_PLACEHOLDER = {"mixer": "swiglu"}


def _build_mixers(
    entry: Entry, config: Any, is_autoencoder: bool, generator: torch.Generator
) -> nn.Module:
    from manticore.models.mixer_autoencoder import MixerAutoEncoder
    from manticore.models.modeling_mixer_lm import MixerForCausalLM

    model_class = MixerAutoEncoder if is_autoencoder else MixerForCausalLM
    model = model_class(config, generator)
    if entry.module:
        from manticore.evaluation.mad.outside import OutsideMixer

        loaded = _load_class(entry.module)
        for layer, described in zip(model.model.layers, entry.layers, strict=True):
            if described["mixer"] == MODULE:
                layer.mixer = OutsideMixer.draw(loaded, entry.d_model, generator)
    return model


def _build_hf(
    config: Mapping[str, Any],
    vocab_size: int,
    is_autoencoder: bool,
    compat: str,
    generator: torch.Generator,
) -> nn.Module:
    from transformers import AutoModel, AutoModelForCausalLM

    from manticore.evaluation.mad.outside import drawn_from
    from manticore.models.configuration_mixer_lm import MixerLMConfig
    from manticore.models.mixer_autoencoder import MixerAutoEncoder

    built = _hf_config(config, vocab_size)
    if not is_autoencoder:
        return drawn_from(generator, lambda: AutoModelForCausalLM.from_config(built))
    shell = MixerLMConfig(d_model=built.hidden_size, vocab_size=vocab_size, compat=compat)
    model: Any = MixerAutoEncoder(shell, generator)
    model.model = drawn_from(generator, lambda: AutoModel.from_config(built))
    return model


def _hf_config(config: Mapping[str, Any], vocab_size: int) -> Any:
    """The configuration with the task's vocabulary, without dropout and without special tokens."""
    from transformers import AutoConfig

    values = {key: value for key, value in config.items() if key not in _DROPPED}
    model_type = values.pop("model_type", None)
    for key, value in values.items():
        if "drop" in key and isinstance(value, int | float):
            values[key] = 0.0  # as in every model of MAD
    try:
        # Nothing that the file names is ever imported: the type is looked up in transformers.
        built = AutoConfig.for_model(model_type, **values)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"transformers knows no model_type {model_type!r}. Give the config.json of a causal "
            "language model that it ships."
        ) from error
    built.vocab_size = vocab_size
    built.use_cache = False
    return built


_DROPPED = (
    "auto_map", "architectures", "torch_dtype", "dtype", "vocab_size", "bos_token_id",
    "eos_token_id", "pad_token_id", "transformers_version", "_name_or_path", "use_cache",
)  # fmt: skip


def _hf_costs(config: Mapping[str, Any], vocab_size: int, seq_len: int) -> dict[str, int | None]:
    import torch
    from transformers import AutoModelForCausalLM

    from manticore.models.costs import head_cost, layer_cost

    built = _hf_config(config, vocab_size)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(built)
    flops: int | None
    try:
        layers = layer_cost(built, 0, built.num_hidden_layers, seq_len)
        flops = layers.forward.total + head_cost(built).forward.total
    except ValueError:
        flops = None
    return {
        "parameters": model.num_parameters(),
        "state": None,
        "fixed_state": None,
        "flops_per_token": flops,
    }


def _count_built(entry: Entry, vocab_size: int) -> int:
    from manticore.seeds import torch_generator

    model = _build_mixers(entry, mixer_config(entry, vocab_size), False, torch_generator(0))
    return sum(parameter.numel() for parameter in model.parameters())


def _load_class(path: str) -> Any:
    """The class that "pkg:Class" names."""
    module, separator, name = path.partition(":")
    if not (separator and module and name):
        raise ValueError(f"--module {path!r} is not of the form 'package.module:Class'.")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--module {path}: there is no module {error.name!r}. Run from the folder that holds "
            "it, or put that folder on PYTHONPATH."
        ) from error
    except AttributeError as error:
        raise ValueError(f"--module {path}: {module} has no {name!r}.") from error
    if not inspect.isclass(found):
        raise ValueError(f"--module {path}: {name} is no class.")
    return found


def _source_hash(loaded: Any) -> str | None:
    """A hash of the file that holds a class: other code is another architecture."""
    try:
        path = inspect.getsourcefile(loaded)
    except TypeError:
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None
