"""Tiny models of the families whose adapters need care, plain and wrapped by any method."""

from __future__ import annotations

from typing import Any

from peft import (
    GraloraConfig,
    IA3Config,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PeftModel,
    get_peft_model,
)
from torch import nn

HYBRIDS = (
    "mamba",
    "mamba2",
    "falcon_mamba",
    "jamba",
    "nemotron_h",
    "falcon_h1",
    "bamba",
    "granitemoehybrid",
    "qwen3_next",
)

METHODS: dict[str, Any] = {
    "lora": lambda targets: LoraConfig(target_modules=targets, r=2),
    "gralora": lambda targets: GraloraConfig(target_modules=targets, r=4, gralora_k=2),
    "miss": lambda targets: MissConfig(target_modules=targets, r=2),
    "oft": lambda targets: OFTConfig(target_modules=targets, oft_block_size=4, r=0),
    "ia3": lambda targets: IA3Config(target_modules=targets, feedforward_modules=[]),
}


def adapted(model: nn.Module, targets: Any, method: str = "lora") -> PeftModel:
    return get_peft_model(model, METHODS[method](targets))
