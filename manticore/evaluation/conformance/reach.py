"""Whether gradients reach every parameter, and adapters act where they were put."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from manticore.evaluation.conformance.probe import NotApplicable, Probe


@dataclass(frozen=True, kw_only=True)
class Missed:
    """What gradients do not reach."""

    names: list[str]
    """Parameters or modules, of which each is a fault."""
    left_out: str = ""
    """What else is out of reach, and why that is no fault."""


def unreached_parameters(probe: Probe) -> Missed:
    """Parameters whose gradient of the training loss is missing, zero or not finite.

    Rows of a table that no token uses are zero of course; a whole tensor of zeros is a fault.
    Experts that no token was sent to are left out, as routing is not at fault, and so is what the
    model itself calls idle (`idle_parameters`: a hybrid's branches of zero weight), if it is.
    """
    model = copy.deepcopy(probe.model).float().train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    idle = {id(parameter) for parameter in _idle_parameters(model)}
    _backward(model, probe)
    names = []
    for name, parameter in model.named_parameters():
        if id(parameter) in idle and not _is_dead(parameter):
            names.append(f"{name} (has one, and is called idle)")
        elif id(parameter) not in idle and _is_dead(parameter) and "expert" not in name:
            names.append(name)
    why = "tensors are idle by design: branches of zero weight, rows with a single one"
    return Missed(names=names, left_out=f"{len(idle)} {why}" if idle else "")


def bypassed_adapters(probe: Probe) -> Missed:
    """Linear layers where PEFT accepts a LoRA that then has no effect on the loss.

    A fused kernel that reads `layer.weight` passes the adapter by, and training goes on as if
    nothing were wrong.
    """
    import peft

    model = copy.deepcopy(probe.model).float().train()
    targets = sorted(_linear_names(model))
    if not targets:
        raise NotApplicable("it has no linear layers outside its tables")
    adapted, refused = None, []
    while adapted is None:
        config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
        try:
            adapted = peft.get_peft_model(model, config)
        except ValueError as error:  # PEFT knows that this one would be passed by, and says so
            named = [name for name in targets if name.rpartition(".")[2] in str(error)]
            if not named:
                raise
            refused += named
            targets = [name for name in targets if name not in named]
            model = copy.deepcopy(probe.model).float().train()
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A") and name.removeprefix("base_model.model.") in set(targets)
    }
    for layer in layers.values():
        layer.get_base_layer().weight.requires_grad_(True)
    _backward(adapted, probe)
    return Missed(names=sorted(name for name, layer in layers.items() if _is_bypassed(layer)))


def _idle_parameters(model: Any) -> list[nn.Parameter]:
    """What the model says that no gradient reaches by its design."""
    own = model.get_base_model() if hasattr(model, "get_base_model") else model
    return own.idle_parameters() if hasattr(own, "idle_parameters") else []


def _is_bypassed(layer: Any) -> bool:
    """Whether the layer's own weight is used, and its adapter is not."""
    factors = [*layer.lora_A.parameters(), *layer.lora_B.parameters()]
    return not _is_dead(layer.get_base_layer().weight) and any(map(_is_dead, factors))


def _backward(model: Any, probe: Probe) -> None:
    with torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(probe.seed)  # dropout
        model(input_ids=probe.ids, labels=probe.ids, use_cache=False).loss.backward()


def _is_dead(parameter: nn.Parameter) -> bool:
    grad = parameter.grad
    return grad is None or not torch.isfinite(grad).all() or not bool(grad.abs().sum() > 0)


def _linear_names(model: Any) -> list[str]:
    """Linear layers (GPT-2's Conv1D is one), the head and those tied to a table left out."""
    from transformers.pytorch_utils import Conv1D

    head, modules = model.get_output_embeddings(), list(model.named_modules())
    tables = {id(module.weight) for _, module in modules if isinstance(module, nn.Embedding)}
    return [
        name
        for name, module in modules
        if isinstance(module, nn.Linear | Conv1D)
        and module is not head
        and id(module.weight) not in tables
    ]
