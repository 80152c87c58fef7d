"""Layers and tasks as athms/mad-lab names them, in its YAML files and in its registry, as ours.

Keys that do nothing in mad-lab (`nested`, `outer_mixing`, `num_blocks`, ...) are accepted and left
out. Layers whose computation we mend come with `compat` where `compat="mad-lab"` is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from manticore.models.foreign_layers import find_rule
from manticore.models.mad_lab_hyenas import HYENAS
from manticore.models.mad_lab_rules import RULES

ABSENT = {"bs-gated-delta-net": "a later addition to it; gated-delta-net comes closest"}
# What compat="mad-lab" sets, where the original computes something that we mend. Mamba is not here:
# the bias of its time steps is the original's autoencoder's doing, so it is that of ours.
MENDED: dict[str, dict[str, Any]] = {
    "linear-attention": {"feature_map": "quadratic", "compat": "mad-lab"},
    "mh-linear-attention": {"feature_map": "quadratic", "compat": "mad-lab"},
    **{name: {"compat": "mad-lab"} for name in ("moe-mlp", *HYENAS)},
}

TASKS = (
    "in-context-recall",
    "noisy-in-context-recall",
    "fuzzy-in-context-recall",
    "memorization",
    "compression",
    "selective-copying",
)
_TASK_KEYS = {
    "vocab_size": "vocab_size",
    "seq_len": "seq_len",
    "num_train_examples": "num_train",
    "multi_query": "multi_query",
    "k_motif_size": "k_motif_size",
    "v_motif_size": "v_motif_size",
    "noise_vocab_size": "noise_vocab_size",
    "frac_noise": "frac_noise",
    "num_tokens_to_copy": "num_tokens_to_copy",
}


def layer_from_mad_lab(
    name: str, settings: Mapping[str, Any] | None = None, *, compat: str = "fixed"
) -> tuple[dict[str, Any], int]:
    """One layer of mad-lab as ours.

    Args:
        name: as in its registry and its file names, such as "mh-gated-linear-attention".
        settings: the content of its YAML file; None: its defaults.
        compat: "mad-lab" computes what the original computes where we mend it.

    Returns:
        The layer {"mixer": name, ...}, and its width d_model.
    """
    if compat not in ("fixed", "mad-lab"):
        raise ValueError(f"compat={compat!r} is not known. Known: fixed, mad-lab.")
    rule = find_rule(RULES, name, "mad-lab", ABSENT)
    if settings is None:
        layer, d_model = {"mixer": rule.mixer}, 128  # our names stand for its files
    else:
        d_model = int(settings.get("dim", 128))
        layer = rule.apply({"dim": d_model, **settings}, f"mad-lab's {name}")
    if compat == "mad-lab":
        layer |= MENDED.get(rule.mixer, {})
    return layer, d_model


def read_mad_lab_layer(
    path: str | os.PathLike[str], *, compat: str = "fixed"
) -> tuple[dict[str, Any], int]:
    """One of mad-lab's configs/layers/*.yml, named by its file."""
    return layer_from_mad_lab(Path(path).stem, _read(path), compat=compat)


def task_from_mad_lab(
    name: str, content: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """One task of mad-lab: the options of its baseline, and the changes one at a time.

    Args:
        name: as its file is named.
        content: of configs/tasks/<name>.yml: {"baseline": {...}, "changes": {key: [...]}}.

    Returns:
        Options by the names of `manticore.tasks.mad.make_data`, with `num_train` beside them.
    """
    if name not in TASKS:
        raise ValueError(f"{name!r} is no task of mad-lab. Known: {', '.join(TASKS)}.")
    unknown = set(content) - {"baseline", "changes"}
    if unknown or "baseline" not in content:
        raise ValueError(
            f"mad-lab's {name}: a task has 'baseline' and 'changes', not {sorted(content)}."
        )
    baseline = {_task_key(name, key): value for key, value in content["baseline"].items()}
    changes = {
        _task_key(name, key): list(values) for key, values in content.get("changes", {}).items()
    }
    return baseline, changes


def read_mad_lab_task(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """One of mad-lab's configs/tasks/*.yml, named by its file."""
    return task_from_mad_lab(Path(path).stem, _read(path))


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{os.fspath(path)} holds no settings (a mapping of keys to values).")
    return content


def _task_key(name: str, key: str) -> str:
    if key not in _TASK_KEYS:
        raise ValueError(
            f"mad-lab's {name}: option {key!r} is not known. Known: {', '.join(_TASK_KEYS)}."
        )
    return _TASK_KEYS[key]
