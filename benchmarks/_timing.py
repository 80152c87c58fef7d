"""Time by processor seconds, which other work on the machine inflates least."""

from __future__ import annotations

import time
from collections.abc import Callable

NOTE = "process CPU seconds, minimum over repeats; the machine was shared with other work"


def cpu_seconds(work: Callable[[], object], repeats: int, warm_up: int = 1) -> float:
    """Return the least processor time of one call, all threads of this process together."""
    for _ in range(warm_up):
        work()
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best
