"""Named random streams: every source of randomness has its own seed, derived from one number.

A stream is named by words and numbers, `derive_seed(0, "search", "train", 3)`. Streams with
different names are independent, so adding one leaves the others unchanged, and nothing here
touches global state.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """Return the seed of the stream called `names`, a number in [0, 2**63).

    Args:
        seed: the run's seed, any integer.
        names: the path of the stream. Order matters, and 1 is not "1".
    """
    for part in (seed, *names):
        if isinstance(part, bool) or not isinstance(part, str | int):
            raise ValueError(
                f"A seed is made of integers and strings, not {part!r} ({type(part).__name__})."
            )
    # JSON keeps ("ab", "c") apart from ("a", "bc"), and 1 from "1".
    key = json.dumps([seed, *names], ensure_ascii=True).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1


def torch_generator(
    seed: int, *names: str | int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a torch generator at the start of the stream called `names`."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> numpy.random.Generator:
    """Return a NumPy generator at the start of the stream called `names`."""
    import numpy

    return numpy.random.default_rng(derive_seed(seed, *names))
