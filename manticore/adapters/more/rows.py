"""Run another adapter for every row of a batch (`adapter_names=[...]`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from torch.utils.hooks import RemovableHandle

from manticore.adapters.more.layer import BASE, MoReLayer


@contextmanager
def adapter_names_by_row(
    tuner: nn.Module, adapter_names: list[str] | None, num_beams: Any = None
) -> Iterator[None]:
    """Hand every adapted layer the adapters' names while the context lasts.

    Args:
        tuner: the model with adapters, in evaluation mode.
        adapter_names: one name per row, `__base__` for none. None does nothing.
        num_beams: beams of a beam search, which repeats every row that often.
    """
    if adapter_names is None:
        yield
        return
    _check(tuner, adapter_names)
    beams = num_beams if isinstance(num_beams, int) else 1
    repeated = [name for name in adapter_names for _ in range(beams)]
    handles = _hook(tuner, repeated)
    encoder = _encoder(tuner)
    if beams > 1 and encoder is not None:
        handles += _hook(encoder, list(adapter_names))  # an encoder sees every row once
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check(tuner: nn.Module, adapter_names: list[str]) -> None:
    if tuner.training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
    if not isinstance(adapter_names, (list, tuple)):
        raise TypeError(f"Got adapter names of type {type(adapter_names)}, expected a list of str.")
    layers = [module for module in tuner.modules() if isinstance(module, MoReLayer)]
    known = {name for layer in layers for name in layer.more_A}
    unknown = sorted({*adapter_names} - known - {BASE})
    if unknown:
        raise ValueError(
            f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}. "
            f"Known: {', '.join(sorted(known))}, and {BASE} for none."
        )


def _hook(model: nn.Module, adapter_names: list[str]) -> list[RemovableHandle]:
    """Pass the names to every adapted module of `model`; the hook added last wins."""

    def pass_names(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "adapter_names": adapter_names}

    return [
        module.register_forward_pre_hook(pass_names, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, (MoReLayer, AuxiliaryTrainingWrapper))
    ]


def _encoder(tuner: Any) -> nn.Module | None:
    model = tuner.model
    if not hasattr(model, "get_encoder"):
        return None
    encoder = model.get_encoder()  # transformers returns the model itself where there is none
    return None if encoder is model else encoder
