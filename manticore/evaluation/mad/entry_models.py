"""Models of entries that are stacks of mixers, with a user's own module in them or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from manticore.evaluation.mad.own_class import load_class

if TYPE_CHECKING:
    import torch
    from torch import nn

    from manticore.evaluation.mad.entry import Entry

MODULE = "module"
"""Name of a user's own module in a list of layers."""
PLACEHOLDER = {"mixer": "swiglu"}
"""Holds a user's module's place where only mixers are known."""


def mixer_config(
    entry: Entry, vocab_size: int, compat: str = "fixed", seq_len: int | None = None
) -> Any:
    """The configuration of an entry's model; a user's module is held open by a linear map's place.

    A model that is trained on whole sequences wants no cache. A mixer whose filters are stretched
    over a longest length gets the task's, as in mad-lab's benchmark, unless it names one.
    """
    from manticore.models.configuration_mixer_lm import MixerLMConfig, layer_spec

    layers: list[dict[str, Any]] = [
        dict(PLACEHOLDER if layer["mixer"] == MODULE else layer) for layer in entry.layers
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


def build_mixers(
    entry: Entry, config: Any, is_autoencoder: bool, generator: torch.Generator
) -> nn.Module:
    """The model of a configuration, with the user's own modules in their places."""
    from manticore.models.mixer_autoencoder import MixerAutoEncoder
    from manticore.models.modeling_mixer_lm import MixerForCausalLM

    model_class = MixerAutoEncoder if is_autoencoder else MixerForCausalLM
    model = model_class(config, generator)
    if entry.module:
        from manticore.evaluation.mad.outside import OutsideMixer

        loaded = load_class(entry.module)
        for layer, described in zip(model.model.layers, entry.layers, strict=True):
            if described["mixer"] == MODULE:
                layer.mixer = OutsideMixer.draw(loaded, entry.d_model, generator)
    return model


def count_built(entry: Entry, vocab_size: int) -> int:
    """Parameters of an entry's model, counted on the model itself."""
    from manticore.seeds import torch_generator

    model = build_mixers(entry, mixer_config(entry, vocab_size), False, torch_generator(0))
    return sum(parameter.numel() for parameter in model.parameters())
