"""What an earlier run left in its folder: the result or the state, if it was this same run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manticore.training.checkpoint_folder import newest_checkpoint
from manticore.training.checkpoints import load_weights, restore_checkpoint
from manticore.training.state import LoopResult, LoopState


def read_finished(
    home: Path | None, state: LoopState, settings: Mapping[str, Any]
) -> LoopResult | None:
    """Result and state of a run that is done already; None: there is something left to do.

    Raises:
        ValueError: the folder's run had other settings.
    """
    if home is None or not (home / "result.json").is_file():
        return None
    record = json.loads((home / "result.json").read_text(encoding="utf-8"))
    check_settings(home, record["settings"], settings)
    result = LoopResult(**record["loop"])
    if (home / "final").is_dir():
        state.extra.clear()
        state.extra.update(load_weights(home / "final", state.modules))
        return result
    newest = newest_checkpoint(home)
    if newest is None or newest[1]["step"] != result.steps:
        return None  # the last checkpoint was lost: go on from the one before it
    restore_state(*newest, state)
    return result


def restore_state(path: Path, record: Mapping[str, Any], state: LoopState) -> None:
    """Put a checkpoint's weights, moments, random streams and the caller's record into `state`."""
    found = restore_checkpoint(
        path,
        record,
        modules=state.modules,
        optimizers=state.optimizers,
        generators=state.generators,
    )
    state.extra.clear()
    state.extra.update(found.extra["extra"])


def check_settings(home: Path, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise when the run in `home` had other settings than this one."""
    keys = sorted(key for key in saved.keys() | here.keys() if saved.get(key) != here.get(key))
    if keys:
        lines = ", ".join(f"{k}: {saved.get(k)!r} there, {here.get(k)!r} here" for k in keys)
        raise ValueError(
            f"{home} holds a run with other settings ({lines}). "
            "Use the same settings, or another folder."
        )
