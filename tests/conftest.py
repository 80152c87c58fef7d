"""What every test shares: one thread, no hub, and a way to run Python in a clean process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Before torch is imported: tests run side by side, and tiny models gain nothing from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python <arguments>` in a clean process at the repository's root.

    `run_python("-c", code)` asserts success; `check=False` leaves that to the test.
    """

    def run(*arguments: str, check: bool = True, cwd: Path = REPOSITORY, **env: str):
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **env}
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            cwd=cwd,
            env=environment,
            timeout=120,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run
