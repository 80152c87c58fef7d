"""What a run's numbers may depend on: versions and the machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import sys
from typing import Any

# What decides a run's numbers. `environment.json` lists those that are installed.
_PACKAGES = (
    "manticore-lm",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "tokenizers",
    "numpy",
    "datasets",
    "lm_eval",
    "bitsandbytes",
)


def environment() -> dict[str, Any]:
    """Return what a run's numbers may depend on, without importing any of it."""
    from manticore import __version__

    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    versions["manticore-lm"] = __version__  # a checkout need not be installed
    return {
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "versions": versions,
    }
