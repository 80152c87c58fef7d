"""A user's own class, named as "pkg:Class"."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from pathlib import Path
from typing import Any


def load_class(path: str) -> Any:
    """The class that "pkg:Class" names."""
    module, separator, name = path.partition(":")
    if not (separator and module and name):
        raise ValueError(f"--module {path!r} is not of the form 'package.module:Class'.")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--module {path}: there is no module {error.name!r}. Run from the folder that holds "
            "it, or put that folder on PYTHONPATH."
        ) from error
    except AttributeError as error:
        raise ValueError(f"--module {path}: {module} has no {name!r}.") from error
    if not inspect.isclass(found):
        raise ValueError(f"--module {path}: {name} is no class.")
    return found


def source_hash(loaded: Any) -> str | None:
    """A hash of the file that holds a class: other code is another architecture."""
    try:
        path = inspect.getsourcefile(loaded)
    except TypeError:
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None
