"""The same measurement again in a process that keeps its large blocks of memory.

glibc takes blocks above 32 MiB from the kernel and gives them back at once, so that each large
temporary of torch is paid in page faults; past the length or batch where tensors cross that line,
time grows faster than the work.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import torch

KEEP_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


def keeping_large_blocks(module: str, call: str) -> Any:
    """Return what `call`, an expression of the benchmark `module`, gives in such a process."""
    code = (
        f"import json, torch; torch.set_num_threads({torch.get_num_threads()}); "
        f"from benchmarks.{module} import *; print(json.dumps({call}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | KEEP_BLOCKS,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])
