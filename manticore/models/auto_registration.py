"""Tell transformers' Auto classes about a configuration and its models, no earlier than it is safe.

`manticore/__init__.py` has the methods here called after certain modules have been imported:

- `register_config` after transformers' `configuration_auto`, so that `AutoConfig` knows our
  `model_type` however it was reached;
- `register_models` after our own modeling modules.

The models cannot be registered when transformers' `modeling_auto` is imported: that happens in the
middle of the import of transformers' own modeling code, which ours needs whole. Nobody can look a
model up in an Auto class without its configuration, so making one loads the models
(`load_models`). Every method may be called again: it then changes nothing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

Place = tuple[str, str]
"""A module, and the name of a class in it."""


class AutoRegistration:
    """One configuration class, and which Auto class builds which of its models.

    Args:
        config: where the configuration is.
        models: Auto class -> where its model is.
    """

    def __init__(self, config: Place, models: Mapping[str, Place]) -> None:
        self.config, self.models = config, models

    def register_config(self, _imported: object = None) -> None:
        """Register the configuration with `AutoConfig`."""
        module, name = self.config
        if module in sys.modules and not hasattr(sys.modules[module], name):
            return  # it is being imported, and its own hook calls again at its end
        from transformers.models.auto.configuration_auto import AutoConfig

        config_class = self._config_class()
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)

    def register_models(self, _imported: object = None) -> None:
        """Register those model classes whose modules are imported by now."""
        from transformers.models.auto import modeling_auto

        for auto_name, (module, name) in self.models.items():
            model_class = getattr(sys.modules.get(module), name, None)
            if model_class is not None:
                auto_class = getattr(modeling_auto, auto_name)
                auto_class.register(self._config_class(), model_class, exist_ok=True)

    def load_models(self) -> None:
        """Import the modeling modules, whose hooks then register their classes."""
        for module in dict.fromkeys(module for module, _ in self.models.values()):
            importlib.import_module(module)

    def _config_class(self) -> Any:
        module, name = self.config
        return getattr(importlib.import_module(module), name)
