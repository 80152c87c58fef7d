"""MoRe, Monarch rectangular fine-tuning (arXiv 2408.17383), as a method of PEFT.

PEFT is imported first: registration happens as soon as it is loaded, and needs it whole.
"""

import peft as peft

from manticore.adapters.more.config import MoReConfig
from manticore.adapters.more.conversion import (
    convert_to_lora,
    from_dense,
    from_lora,
    save_as_lora,
)
from manticore.adapters.more.embedding import MoReEmbedding
from manticore.adapters.more.gralora import from_gralora, to_gralora
from manticore.adapters.more.layer import MoReLayer
from manticore.adapters.more.linear import MoReLinear
from manticore.adapters.more.model import MoReModel

__all__ = [
    "MoReConfig",
    "MoReEmbedding",
    "MoReLayer",
    "MoReLinear",
    "MoReModel",
    "convert_to_lora",
    "from_dense",
    "from_gralora",
    "from_lora",
    "save_as_lora",
    "to_gralora",
]
