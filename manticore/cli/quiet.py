"""Keep the libraries underneath from talking over the progress."""

from __future__ import annotations

import os
import warnings
from logging import getLogger


def quiet_transformers() -> None:
    """Our own progress bars are enough; one per loaded file would bury them."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read by the worker processes
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # PEFT imports bitsandbytes, which on some processors misses a kernel that only 4 bits want.
    getLogger("bitsandbytes").setLevel("ERROR")
    # PEFT asks transformers by the old name; nobody at a command line can change that.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
