"""TensorBoard files from the records of a run, for those who look there."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_events(records: Iterable[Mapping[str, Any]], folder: str | Path) -> None:
    """Write the numbers of metrics.jsonl as event files, one series of runs for each stage and row.

    The folder is made anew: the records are the source, the event files a view of them.
    """
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    writers: dict[str, Any] = {}
    for record in records:
        if "step" not in record:
            continue
        name = f"{record.get('stage', 'run')}/{record.get('row', 'all')}"
        if name not in writers:
            writers[name] = SummaryWriter(str(Path(folder) / name))
        for key, value in record.items():
            if key != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                writers[name].add_scalar(key, value, record["step"])
    for writer in writers.values():
        writer.close()
