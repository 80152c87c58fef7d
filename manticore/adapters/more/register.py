"""Tell PEFT about MoRe, as soon as PEFT is imported.

`manticore/__init__.py` has `register` called after the import of `peft`. It may be called again:
it then changes nothing.
"""

from __future__ import annotations

NEEDS_PEFT = (0, 21)
"""Oldest PEFT whose tuners find their own parameters; older ones match names in fixed lists."""


def register(_imported: object = None) -> None:
    """Register the method `MORE` with PEFT."""
    import peft

    if tuple(int(part) for part in peft.__version__.split(".")[:2]) < NEEDS_PEFT:
        return  # `MoReConfig` says so when somebody asks for it
    from peft import helpers
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import register_peft_method

    from manticore.adapters.more.config import MoReConfig
    from manticore.adapters.more.layer import MoReLayer
    from manticore.adapters.more.method import NAME, extend_peft_types
    from manticore.adapters.more.model import MoReModel

    extend_peft_types()
    if NAME in PEFT_TYPE_TO_CONFIG_MAPPING:
        return
    register_peft_method(name=NAME.lower(), config_cls=MoReConfig, model_cls=MoReModel)
    # `rescale_adapter_scale` looks for LoRA's layers by this name; ours scale in the same way.
    helpers.LoraLayer = (helpers.LoraLayer, MoReLayer)
