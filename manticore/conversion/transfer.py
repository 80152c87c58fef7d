"""Carry a pretrained transformer into a model with other mixers: XATL's first step.

Choi, 2024 (arXiv:2404.02684): what a transformer and a linear-cost model have in common is copied,
so that only what they do not have in common has to be learned.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manticore.conversion.calibration import calibrate
from manticore.conversion.configuration_converted import ConvertedConfig
from manticore.conversion.first_weights import open_gates
from manticore.conversion.mixer_choice import Layer, as_layer
from manticore.conversion.modeling_converted import ConvertedForCausalLM
from manticore.conversion.plan import TransferPlan
from manticore.conversion.planning import make_plan
from manticore.conversion.reading import Source, check_finite, read_source
from manticore.conversion.vocabulary import check_ids
from manticore.models.loading import load_component
from manticore.seeds import torch_generator

__all__ = ["TransferPlan", "converted_config", "transfer"]


def transfer(
    source: PreTrainedModel | str | os.PathLike[str],
    target: Layer | Sequence[Layer],
    *,
    copy: str | Sequence[str] = "paper",
    keep: Sequence[int] = (),
    calibration: Tensor | None = None,
    seed: int = 0,
) -> tuple[ConvertedForCausalLM, TransferPlan]:
    """Build the converted model and say what became of every tensor.

    Args:
        source: a causal language model of a family in `sources`, or its folder or name.
        target: a mixer for all layers, or one for each: a name, or {"mixer": name, ...settings}.
            "attention" keeps the source's own.
        copy: `paper` (embeddings, norms, MLPs, output projection), `all` (queries, keys and
            values too), `no-output`, `scratch` (nothing), or a list of parts.
        keep: layers that stay attention, whatever `target` says.
        calibration: (batch, seq) token ids; the output scale of each new mixer is set so that on
            them it is as large as the source's attention. None: it stays at one.
        seed: of the weights that are new.

    Returns:
        The model, in eval mode and in the source's dtype, and the plan of the transfer.

    Raises:
        ValueError: a family or a mixer that is not known, heads that do not match, weights that
            are not finite, or text in another vocabulary.
    """
    model_in = _opened(source)
    read = read_source(model_in)
    check_finite(read)
    config = converted_config(read, target, keep)
    if calibration is not None:
        if not isinstance(calibration, Tensor):
            raise ValueError(
                f"calibration is a {type(calibration).__name__}. Give a tensor, such as the "
                "`input_ids` that the tokenizer returns."
            )
        if calibration.dim() != 2 or not calibration.numel():
            raise ValueError(
                f"calibration has the shape {tuple(calibration.shape)}. Give (batch, seq) token "
                "ids, or leave it out."
            )
        check_ids([calibration], config.vocab_size)
    generator = torch_generator(seed, "conversion", "initial weights")
    model = ConvertedForCausalLM.from_generator(config, generator)
    open_gates(model)
    plan, assignments = make_plan(read, model, copy)
    state = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for assignment in assignments:
            state[assignment.target].copy_(assignment.value)
    model.to(dtype=model_in.dtype, device=model_in.device).eval()
    if calibration is not None:
        plan = calibrate(model, identity(model_in), calibration, plan)
    return model, plan


def _opened(source: PreTrainedModel | str | os.PathLike[str]) -> PreTrainedModel:
    if isinstance(source, PreTrainedModel):
        return source
    if not isinstance(source, str | os.PathLike):
        raise ValueError(
            f"The source is a {type(source).__name__}. Give a causal language model of "
            "transformers, its folder or its name; merge adapters into theirs first."
        )
    return load_component(source)


def identity(source: PreTrainedModel) -> ConvertedForCausalLM:
    """The source itself as a converted model with all its attention: the teacher of the others."""
    return transfer(source, "attention", copy="all")[0]


def converted_config(
    source: Source, target: Layer | Sequence[Layer], keep: Sequence[int] = ()
) -> ConvertedConfig:
    """The config of a target with the source's blocks."""
    n_layers = source.block.n_layers
    every: Sequence[Any] = target if isinstance(target, list | tuple) else [target] * n_layers
    layers = [as_layer(layer) for layer in every]
    if len(layers) != n_layers:
        raise ValueError(
            f"target names {len(layers)} mixers, but the source has {n_layers} layers. Give one "
            "mixer for all, or one for each layer."
        )
    if not isinstance(keep, Iterable):
        raise ValueError(f"keep={keep!r} is no list of layers. Give one, as in keep=[{keep!r}].")
    for index in keep:
        if index not in range(n_layers):
            raise ValueError(f"keep names layer {index!r}; the source's are 0 to {n_layers - 1}.")
        layers[index] = {"mixer": "attention"}
    special: dict[str, Any] = {
        name: value for name, value in source.special_tokens.items() if value is not None
    }
    return ConvertedConfig(
        block=source.block.to_dict(),
        layers=layers,
        source=source.model_type,
        max_position_embeddings=source.max_positions,
        **special,
    )


def empty_target(config: ConvertedConfig) -> ConvertedForCausalLM:
    """A model without numbers, for plans."""
    with torch.device("meta"):
        return ConvertedForCausalLM(config)
