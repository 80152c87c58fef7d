"""What the mixers of a model read and give on a text: inputs, heads before W_o, outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from manticore.conversion.modeling_converted import ConvertedForCausalLM


@dataclass
class Observed:
    """One layer, on one batch."""

    read: Tensor
    """(batch, seq, d_model), what the mixer was given."""
    heads: Tensor | None
    """(batch, seq, width), what its output projection was given; None: it has no such part."""
    mixed: Tensor
    """(batch, seq, d_model), what the mixer gave."""
    block_in: Tensor
    """(batch, seq, d_model), the residual stream before the block."""
    block_out: Tensor
    """The residual stream behind it."""


def observe(model: ConvertedForCausalLM, input_ids: Tensor) -> list[Observed]:
    """Run a model and return what happened in every layer, in order."""
    seen: list[dict[str, Any]] = [{} for _ in model.model.layers]
    with _watching(model, seen):
        model.model(input_ids=input_ids, use_cache=False)
    return [Observed(**{"heads": None, **one}) for one in seen]


@contextmanager
def _watching(model: ConvertedForCausalLM, seen: list[dict[str, Any]]) -> Iterator[None]:
    handles = []
    for layer, into in zip(model.model.layers, seen, strict=True):
        mixer: Any = layer.mixer
        handles.append(layer.register_forward_hook(_keep(into, "block_in", "block_out")))
        handles.append(mixer.register_forward_hook(_keep(into, "read", "mixed")))
        output = getattr(mixer, "output", None)
        if isinstance(output, nn.Module):
            handles.append(output.register_forward_hook(_keep(into, "heads", None)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep(into: dict[str, Any], given: str, result: str | None) -> Any:
    def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        into[given] = arguments[0]
        if result is not None:
            into[result] = output

    return hook
