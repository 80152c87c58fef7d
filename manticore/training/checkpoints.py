"""Checkpoints that appear whole or not at all, and restore a run exactly.

```
folder/
  step-000050/  weights.safetensors  state.safetensors  checkpoint.json
  step-000100/                       moments, random    hashes of both, optimizer
  latest.json                        streams            settings, the caller's record
```

The newest folder whose hashes hold is the one that counts, `latest.json` is for readers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from manticore.runs import write_json
from manticore.training.checkpoint_folder import (
    RECORD,
    STATE,
    WEIGHTS,
    damage,
    newest_checkpoint,
    step_folders,
    write_folder,
)
from manticore.training.tensors import (
    NamedTensors,
    module_tensors,
    optimizer_differences,
    optimizer_state,
    restore_optimizers,
    tensor_differences,
    tensor_hash,
    trained_identities,
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was restored."""

    step: int
    """Steps that were complete when it was written."""
    path: Path
    """Its folder."""
    extra: dict[str, Any]
    """The caller's record, as it was given."""


def save_checkpoint(
    folder: str | Path,
    *,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer] | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
    extra: Mapping[str, Any] | None = None,
    write_frozen: bool = False,
    keep: int = 2,
) -> Path:
    """Write ``folder/step-<step>`` atomically and remove all but the newest ``keep``.

    Args:
        modules: what to save, by name. A tied tensor is written once.
        optimizers: moments are stored by parameter name, so the order may change.
        generators: named random streams. Draws from torch's global stream are restored
            if ``torch.default_generator`` is one of them.
        extra: anything JSON can hold.
        write_frozen: also write parameters that take no gradient and are in no optimizer;
            otherwise only their hashes are kept, and `load_checkpoint` expects the same
            frozen weights.
    """
    optimizers = optimizers or {}
    found = module_tensors(modules, None if write_frozen else trained_identities(optimizers))
    moments, records = optimizer_state(optimizers, modules)
    streams = {f"generator/{name}": g.get_state() for name, g in (generators or {}).items()}
    record = {
        "format": 1,
        "step": step,
        "aliases": found.aliases,
        "frozen": {name: tensor_hash(tensor) for name, tensor in found.frozen.items()},
        "optimizers": records,
        "extra": dict(extra or {}),
    }
    path = Path(folder) / f"step-{step:06d}"
    state = {f"optimizer/{name}": tensor for name, tensor in moments.items()} | streams
    write_folder(path, {WEIGHTS: found.stored, STATE: state}, record)
    write_json(Path(folder) / "latest.json", {"step": step, "folder": path.name})
    for old in step_folders(Path(folder))[keep:]:
        shutil.rmtree(old)
    return path


def load_checkpoint(
    folder: str | Path,
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer] | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
) -> Checkpoint | None:
    """Restore the newest whole checkpoint in place; None if the folder has none.

    A damaged checkpoint is passed over with a warning that names it. One that belongs to
    other modules, optimizers or frozen weights raises ValueError and changes nothing.
    """
    newest = newest_checkpoint(folder)
    if newest is None:
        return None
    return restore_checkpoint(
        *newest, modules=modules, optimizers=optimizers, generators=generators
    )


def restore_checkpoint(
    path: Path,
    record: Mapping[str, Any],
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer] | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
) -> Checkpoint:
    """Restore what `newest_checkpoint` found; see `load_checkpoint`."""
    optimizers, generators = optimizers or {}, generators or {}
    weights, state = load_file(path / WEIGHTS), load_file(path / STATE)
    streams = {n.removeprefix("generator/"): t for n, t in state.items() if n[:10] == "generator/"}
    found = module_tensors(modules, _trained_or_all(record, optimizers))
    differences = [
        *_alias_differences(found, record),
        *tensor_differences(found, weights),
        *_frozen_differences(found, record),
        *optimizer_differences(optimizers, modules, record["optimizers"]),
        *sorted(f"random stream {name}: on one side only" for name in streams.keys() ^ generators),
    ]
    _refuse(path, differences)
    _copy_into(found, weights)
    moments = {n.removeprefix("optimizer/"): t for n, t in state.items() if n[:10] == "optimizer/"}
    restore_optimizers(optimizers, modules, moments, record["optimizers"])
    for name, generator in generators.items():
        generator.set_state(streams[name])
    return Checkpoint(step=record["step"], path=path, extra=record["extra"])


def save_weights(
    path: str | Path, modules: Mapping[str, nn.Module], extra: Mapping[str, Any] | None = None
) -> Path:
    """Write the complete weights of modules, frozen ones included, as the folder ``path``."""
    found = module_tensors(modules)
    record = {"format": 1, "step": 0, "aliases": found.aliases, "frozen": {}, "optimizers": {}}
    write_folder(Path(path), {WEIGHTS: found.stored}, {**record, "extra": dict(extra or {})})
    return Path(path)


def load_weights(path: str | Path, modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Copy weights written by `save_weights` into modules; return the caller's record."""
    path = Path(path)
    problem = damage(path)
    if problem:
        raise ValueError(f"{path} holds no whole weights: {problem}.")
    record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    found, weights = module_tensors(modules), load_file(path / WEIGHTS)
    _refuse(path, [*_alias_differences(found, record), *tensor_differences(found, weights)])
    _copy_into(found, weights)
    return record["extra"]


def _copy_into(found: NamedTensors, weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in found.stored.items():
            tensor.copy_(weights[name])


def _trained_or_all(record: Mapping[str, Any], optimizers: Mapping[str, Optimizer]) -> set | None:
    return trained_identities(optimizers) if record["frozen"] else None


def _alias_differences(found: NamedTensors, record: Mapping[str, Any]) -> list[str]:
    tied = found.aliases.items() ^ record["aliases"].items()
    return [f"{name}: tied to {to} on one side only" for name, to in sorted(tied)]


def _frozen_differences(found: NamedTensors, record: Mapping[str, Any]) -> list[str]:
    saved = record["frozen"]
    lines = [f"{name}: frozen on one side only" for name in sorted(found.frozen.keys() ^ saved)]
    for name in sorted(found.frozen.keys() & saved):
        if tensor_hash(found.frozen[name]) != saved[name]:
            lines.append(f"{name}: frozen, but with other values")
    return lines


def _refuse(path: Path, differences: list[str]) -> None:
    if differences:
        shown = "\n  ".join(differences[:12])
        more = f"\n  and {len(differences) - 12} more" if len(differences) > 12 else ""
        raise ValueError(
            f"The checkpoint {path} belongs to another model or run:\n  {shown}{more}\n"
            "Build the same model as before, or start in an empty folder."
        )
