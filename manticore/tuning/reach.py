"""Whether the gradient reaches an adapter: measured by a backward pass, nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from manticore.adapters.stack import Projection
from manticore.seeds import derive_seed, torch_generator

TOKENS = (2, 24)
"""Rows and columns of the random batch."""


@dataclass(frozen=True)
class Reach:
    """What one backward pass says about one adapted module."""

    adapter: bool
    """A parameter of the adapter has a gradient that is not zero."""
    base: bool
    """So has the frozen weight beneath it: the module's weight matters for the output."""


def measure_reach(
    model: nn.Module, projections: Sequence[Projection], batch: Mapping[str, Any] | None = None
) -> dict[str, Reach]:
    """Run one forward and backward pass in training mode; say what reached each adapted module.

    Args:
        model: with adapters; parameters, gradients and modes are left as they were.
        projections: adapted modules to ask about.
        batch: arguments of the model; default random tokens.
    """
    adapters = {p.name: _adapter_parameters(p.module) for p in projections}
    weights = {p.name: _weight(p.base) for p in projections}
    bases = [w for w in weights.values() if w is not None and w.is_floating_point()]
    frozen = [w for w in bases if not w.requires_grad]
    modes = [(module, module.training) for module in model.modules()]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        model.train()
        asked = _distinct([*bases, *(p for some in adapters.values() for p in some)])
        gradients = _gradients(model, asked, batch)
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
        for module, mode in modes:
            module.training = mode
    moved = {id(p): _moves(g) for p, g in zip(asked, gradients, strict=True)}
    return {
        p.name: Reach(
            adapter=any(moved[id(parameter)] for parameter in adapters[p.name]),
            base=moved.get(id(weights[p.name]), False),
        )
        for p in projections
    }


def random_batch(model: nn.Module) -> dict[str, Any]:
    """Random tokens of the model's vocabulary, the same on every call, as in training."""
    config: Any = getattr(model, "config", None)
    vocab_size = getattr(config, "vocab_size", None)
    if not vocab_size:
        raise ValueError(
            f"{type(model).__name__} names no vocabulary, so no batch can be drawn for it. Pass "
            "batch=, the arguments of its forward."
        )
    device = next(model.parameters()).device
    generator = torch_generator(0, "coverage")
    ids = torch.randint(int(vocab_size), TOKENS, generator=generator).to(device)
    batch: dict[str, Any] = {"input_ids": ids}
    if hasattr(config, "use_cache"):  # with a cache, layers avoid the kernels that training uses
        batch["use_cache"] = False
    if getattr(config, "is_encoder_decoder", False):
        batch["decoder_input_ids"] = ids
    return batch


def _gradients(
    model: nn.Module, parameters: Sequence[Tensor], batch: Mapping[str, Any] | None
) -> Sequence[Tensor | None]:
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(derive_seed(0, "coverage", "dropout"))
        output = model(**(random_batch(model) if batch is None else batch))
        # A plain sum would have no gradient through a softmax or a normalisation.
        loss = _first_float(output).float().square().mean()
        return torch.autograd.grad(loss, list(parameters), allow_unused=True)


def _first_float(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    values = output.values() if isinstance(output, Mapping) else output
    found = next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)
    if found is None:
        raise ValueError("The model returned no tensor of floating point numbers to differentiate.")
    return found


def _adapter_parameters(module: nn.Module) -> list[nn.Parameter]:
    return [
        parameter
        for name, parameter in module.named_parameters()
        if not name.startswith("base_layer.") and parameter.requires_grad
    ]


def _weight(base: nn.Module) -> Tensor | None:
    weight = getattr(base, "weight", None)
    return weight if isinstance(weight, nn.Parameter) else None


def _distinct(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list({id(t): t for t in tensors}.values())


def _moves(gradient: Tensor | None) -> bool:
    return gradient is not None and bool((gradient != 0).any())
