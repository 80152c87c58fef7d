"""Architectures in the files of other libraries, for the options of MAD's verbs.

`--layers` takes mad-lab's configs/layers/*.yml, `--hf-config` also the config.json of a model of
flash-linear-attention that transformers does not have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manticore.evaluation.mad.entry import Entry


def read_layers(words: Sequence[str], d_model: int, compat: str) -> list[str | dict[str, Any]]:
    """The words of --layers, files of mad-lab replaced by the layers that they describe.

    Raises:
        ValueError: a file of another width than the model's, or one that we cannot follow.
    """
    return [
        _mad_lab_layer(Path(word), d_model, compat) if word.endswith((".yml", ".yaml")) else word
        for word in words
    ]


def config_entry(path: Path) -> Entry:
    """The architecture of a config.json: of transformers, or of flash-linear-attention.

    Raises:
        ValueError: no configuration, or one that neither library's names explain.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    from manticore.evaluation.mad.entry import Entry, entry_of_layers
    from manticore.models.fla_rules import RULES
    from manticore.models.imports_fla import layers_from_fla

    config = _read_config(path)
    # A folder's model is always in config.json, so that the folder tells them apart.
    name = path.resolve().parent.name if path.stem == "config" else path.stem
    if config["model_type"] in CONFIG_MAPPING_NAMES or config["model_type"] not in RULES:
        return Entry(name=name, hf_config=config)
    return entry_of_layers(layers_from_fla(config), int(config.get("hidden_size", 2048)), name=name)


def _mad_lab_layer(path: Path, d_model: int, compat: str) -> dict[str, Any]:
    from manticore.models.imports_mad_lab import read_mad_lab_layer

    layer, width = read_mad_lab_layer(path, compat=compat)
    if width != d_model:
        raise ValueError(
            f"{path} describes a layer of width {width}, and the model has {d_model}. Choose "
            f"--d-model {width}."
        )
    return layer


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ValueError(f"{path} has no model_type. Give a model's config.json.")
    return config
