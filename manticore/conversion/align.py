"""Layer-wise matching: each new mixer learns to do what the teacher's attention did.

Every layer is fed what the teacher's was, so all layers learn at once and no error runs on. That
is the first stage of MOHAWK (Bick et al., 2024, arXiv:2408.10189) and of LoLCATs (Zhang et al.,
2024, arXiv:2410.10254). For layer l with input x_l of the teacher, the loss is the mean over the
converted layers of

    |f_l(x_l) - f*_l(x_l)|^2 / |f*_l(x_l)|^2         f, f*: mixer or block, here and in the teacher
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from manticore.conversion.modeling_converted import ConvertedForCausalLM
from manticore.conversion.observing import observe

LossFunction = Callable[[Any, Mapping[str, Any]], Tensor]


def converted_layers(model: ConvertedForCausalLM) -> list[int]:
    """Layers that do not keep the source's attention as it was."""
    layers = model.config.layers
    return [index for index, layer in enumerate(layers) if layer != {"mixer": "attention"}]


def mixer_parameters(model: ConvertedForCausalLM) -> list[nn.Parameter]:
    """What matching trains: everything in the mixers of the converted layers."""
    return [
        p for i in converted_layers(model) for p in mixer_of(model, i).parameters()
        if p.requires_grad
    ]  # fmt: skip


def train_only(trained: Iterable[nn.Parameter], model: nn.Module) -> None:
    """Let nothing else of the model take gradients."""
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


def mixer_of(model: ConvertedForCausalLM, index: int) -> nn.Module:
    """The token mixer of one layer."""
    layer: Any = model.model.layers[index]
    mixer: nn.Module = layer.mixer
    return mixer


def align_loss(teacher: ConvertedForCausalLM, match: str) -> LossFunction:
    """The loss of matching as a function of a model and a batch.

    Args:
        teacher: the source with all its attention (`transfer.identity`).
        match: `mixers` or `blocks`.
    """
    given, wanted = ("read", "mixed") if match == "mixers" else ("block_in", "block_out")

    def loss(model: ConvertedForCausalLM, batch: Mapping[str, Any]) -> Tensor:
        with torch.no_grad():
            seen = observe(teacher, batch["input_ids"])
        errors = []
        for index in converted_layers(model):
            module = mixer_of(model, index) if match == "mixers" else model.model.layers[index]
            target = getattr(seen[index], wanted).float()
            error = module(getattr(seen[index], given)).float() - target
            errors.append(error.square().mean() / target.square().mean().clamp(min=1e-12))
        return torch.stack(errors).mean()

    return loss
