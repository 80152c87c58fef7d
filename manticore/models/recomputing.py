"""Gradient checkpointing: less memory for a second forward pass of each layer."""

from __future__ import annotations

from typing import Any


def recompute_activations(model: Any) -> None:
    """Keep only the inputs of layers for the backward pass, which computes the rest again.

    Args:
        model: of transformers or manticore, wrapped by PEFT or not; only training is changed.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ValueError(
            f"{type(model).__name__} cannot checkpoint its layers. Set gradient_checkpointing: "
            "false; grad_accumulation saves memory with every model."
        )
    # Newer releases of transformers call it by another name.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)()
