"""Run benchmarks and record them: `python -m benchmarks [--threads N] [name ...]`.

A benchmark is a module in this folder with `run() -> dict`. Its record goes to
benchmarks/results/<name>.json together with the command, versions, processor and date; where the
module has `draw(results) -> str`, a picture lies beside it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> int:
    """Run the named benchmarks, or all of them, and write one record each."""
    known = known_benchmarks()
    options = _parser(known).parse_args(arguments)
    unknown = [name for name in options.names if name not in known]
    if unknown:
        print(f"Unknown benchmark {unknown[0]!r}. Known: {', '.join(known)}.", file=sys.stderr)
        return 2
    # Before torch is imported, so that every library starts with this number.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    for name in options.names or known:
        print(f"{name} ...", flush=True)
        path = record(name, options.threads, options.out)
        print(f"{name}: wrote {path}", flush=True)
    return 0


def known_benchmarks() -> list[str]:
    """List the modules in this folder, without importing them."""
    found = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(module.name for module in found if not module.name.startswith("_"))


def record(name: str, threads: int, folder: Path = RESULTS) -> Path:
    """Run one benchmark and write its record, whole or not at all."""
    import torch

    from manticore.runs import environment, write_json, write_text

    torch.set_num_threads(threads)
    start = time.perf_counter()
    module = importlib.import_module(f"benchmarks.{name}")
    results: dict[str, Any] = module.run()
    path = folder / f"{name}.json"
    write_json(
        path,
        {
            "name": name,
            "command": f"python -m benchmarks --threads {threads} {name}",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "threads": threads,
            "cpu": _processor(),
            "environment": environment(),
            "wall_seconds": round(time.perf_counter() - start, 1),
            "results": results,
        },
    )
    if hasattr(module, "draw"):
        write_text(path.with_suffix(".svg"), module.draw(results))
    return path


def _parser(known: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(known)}; all when none is given")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the records")
    return parser


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} logical" if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
