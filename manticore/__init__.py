"""Manticore makes pretrained hybrids: pretrained language models in, one checkpoint out.

Importing this package is light: the public names load when they are first used, and neither
torch nor transformers is imported before that. `AutoConfig` and the Auto classes of
transformers know Manticore's models, and PEFT its adapters, as soon as both packages are imported,
in either order.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Any

from wrapt import register_post_import_hook

__version__ = "0.1.0"

# Public name -> the module that holds it.
_PUBLIC = {
    "ConvertedConfig": "manticore.conversion.configuration_converted",
    "ConvertedForCausalLM": "manticore.conversion.modeling_converted",
    "ManticoreConfig": "manticore.hybrids.configuration_manticore",
    "ManticoreForCausalLM": "manticore.hybrids.modeling_manticore",
    "ManticoreForSequenceClassification": "manticore.hybrids.modeling_classification",
    "ManticoreForTokenClassification": "manticore.hybrids.modeling_classification",
    "ManticoreModel": "manticore.hybrids.modeling_manticore",
    "MoReConfig": "manticore.adapters.more",
    "doctor": "manticore.evaluation.conformance",
    "search": "manticore.hybrids.search",
    "transfer": "manticore.conversion.transfer",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    close = difflib.get_close_matches(name, _PUBLIC, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    raise AttributeError(f"module 'manticore' has no attribute '{name}'.{hint}")


def __dir__() -> list[str]:
    rooms = [name for name in globals() if f"{__name__}.{name}" in sys.modules]
    return sorted({*__all__, *rooms, *(name for name in globals() if name.startswith("__"))})


def _register_with_transformers() -> None:
    """Have our classes registered when transformers' Auto classes appear: now, or when they do."""
    hybrids, mixers = "manticore.hybrids.registration", "manticore.models.mixer_registration"
    converted = "manticore.conversion.registration"
    for hook, module in [
        (f"{hybrids}:register_config", "transformers.models.auto.configuration_auto"),
        (f"{hybrids}:register_config", "manticore.hybrids.configuration_manticore"),
        (f"{hybrids}:register_models", "manticore.hybrids.modeling_manticore"),
        (f"{hybrids}:register_models", "manticore.hybrids.modeling_classification"),
        (f"{mixers}:register_config", "transformers.models.auto.configuration_auto"),
        (f"{mixers}:register_config", "manticore.models.configuration_mixer_lm"),
        (f"{mixers}:register_models", "manticore.models.modeling_mixer_lm"),
        (f"{mixers}:register_models", "manticore.models.mixer_classifier"),
        (f"{converted}:register_config", "transformers.models.auto.configuration_auto"),
        (f"{converted}:register_config", "manticore.conversion.configuration_converted"),
        (f"{converted}:register_models", "manticore.conversion.modeling_converted"),
    ]:
        register_post_import_hook(hook, module)


def _register_with_peft() -> None:
    """Have PEFT know our adapters as soon as it is imported."""
    register_post_import_hook("manticore.adapters.more.register:register", "peft")


_register_with_transformers()
_register_with_peft()
