"""A trial that lasts too long. Imports nothing heavy, since worker processes import it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


def sleep_long(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave a mark that the trial has begun, then sleep."""
    (Path(os.environ["MANTICORE_TEST_READY"]) / f"began-{settings['n']}").touch()
    time.sleep(600)
    return {}
