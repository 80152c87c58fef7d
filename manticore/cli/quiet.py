"""Keep the libraries underneath from talking over the progress."""

from __future__ import annotations

import os
from logging import getLogger


def quiet_transformers() -> None:
    """Our own progress bars are enough; one per loaded file would bury them."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read by the worker processes
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # PEFT imports bitsandbytes, which on some processors misses a kernel that only 4 bits want.
    getLogger("bitsandbytes").setLevel("ERROR")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
