"""Models and outputs named on the command line: what may be read, what may be replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from manticore.hybrids.configuration_manticore import ManticoreConfig
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from manticore.models.component_lengths import check_length
from manticore.models.costs import component_cost
from manticore.models.fast_paths import bind_fast_paths
from manticore.models.loading import adapter_message, check_loadable, load_component
from manticore.models.weight_files import first_line
from manticore.text.tokenizers import load_tokenizer


def read_config(folder: Path) -> Any:
    """The config of a hybrid or a component in a folder; no weight is read."""
    if model_type(folder) == ManticoreConfig.model_type:
        return ManticoreConfig.from_pretrained(folder)
    return check_loadable(folder)


def load_model(folder: Path, device: str | None = None) -> PreTrainedModel:
    """The hybrid or the component in a folder, in float32 and eval mode.

    Args:
        folder: made by `manticore` or by `save_pretrained`.
        device: default the GPU if there is one.
    """
    if model_type(folder) == ManticoreConfig.model_type:
        model = load_hybrid(folder)
    else:
        model = load_component(folder, dtype=torch.float32)
        bind_fast_paths(model.base_model)
    return model.to(chosen_device(device)).eval()


def load_hybrid(
    folder: Path, dtype: torch.dtype | Literal["auto"] = torch.float32
) -> ManticoreForCausalLM:
    """The hybrid in a folder, in float32 or (auto) in its own dtype."""
    found = model_type(folder)
    if found != ManticoreConfig.model_type:
        raise ValueError(
            f"{folder} holds a {found} model, not a hybrid. Give a folder that `manticore run` "
            "or `manticore build` wrote."
        )
    try:
        return ManticoreForCausalLM.from_pretrained(folder, dtype=dtype)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(
            f"The weights in {folder} do not load: {first_line(error)}. The files are damaged or "
            "incomplete. Copy or make the hybrid again."
        ) from error


def load_folder_tokenizer(folder: Path, tokenizer: str | None = None) -> Any:
    """The tokenizer beside a model, or another one if it is named."""
    if tokenizer is None and not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{folder} holds a model but no tokenizer.json. Save the model's tokenizer there, or "
            "name one with --tokenizer."
        )
    return load_tokenizer(tokenizer or folder)


def check_vocabulary(config: Any, tokenizer: Any) -> None:
    """Raise unless the model has a row for every token."""
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size} rows. Use "
            "the tokenizer that the model was trained with."
        )


def check_lengths(config: Any, length: int) -> None:
    """Raise when a sequence is longer than a component's table of positions."""
    for part in getattr(config, "components", [config]):
        check_length(part, length)


def describe_model(config: Any, seq_len: int) -> str:
    """Parameters and FLOPs of a hybrid or a component, from its config."""
    if isinstance(config, ManticoreConfig):
        from manticore.cli.stages import describe_cost

        return describe_cost(config, seq_len)
    cost = component_cost(config, seq_len)
    return (
        f"parameters: {cost.parameters:,}\n"
        f"forward pass: {cost.forward.total:.3g} FLOPs per token at {seq_len} tokens"
    )


def chosen_device(device: str | None) -> torch.device:
    """The named device, checked, or the best one there is."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device {device} cannot be used: {first_line(error)}. Try cpu."
        ) from error
    return torch.device(device)


def check_output_folder(out: Path, record: str, source: Path | None = None) -> bool:
    """Raise unless a folder may be written; returns whether an earlier output is replaced.

    Args:
        out: the folder to be written.
        record: name of the file that marks what the same verb wrote.
        source: the folder that is read; it is never replaced.
    """
    if source is not None and out.resolve() == source.resolve():
        raise ValueError(f"--out {out} is the model that is read. Choose another folder.")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file. Choose a new or empty folder.")
    if not out.is_dir() or not any(out.iterdir()):
        return False
    if not (out / record).is_file():
        raise ValueError(
            f"--out {out} is not empty, and this command did not write it (no {record}). Choose a "
            "new or empty folder."
        )
    return True


def check_output_file(out: Path | None, verb: str) -> None:
    """Raise unless a JSON file may be written: a new one, or what the same verb wrote before."""
    if out is None or not out.exists():
        return
    try:
        earlier = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else None
    except (json.JSONDecodeError, UnicodeDecodeError):
        earlier = None
    if not isinstance(earlier, dict) or earlier.get("verb") != verb:
        raise ValueError(
            f"--out {out} exists, and `manticore {verb}` did not write it. Choose a new file."
        )


def model_type(folder: Path) -> str:
    """The family that a folder's config.json names; what is no model's folder raises."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(
            f"{folder} {what}. Give the folder of a model: one that `manticore run` wrote (the "
            "model/ in the run's folder) or one made by save_pretrained()."
        )
    path = folder / "config.json"
    if not path.is_file() and (folder / "adapter_config.json").is_file():
        raise ValueError(adapter_message(folder))
    if not path.is_file():
        inside = sorted(found.parent for found in folder.glob("*/config.json"))
        hint = f"Did you mean {inside[0]}?" if inside else "Give a folder with config.json."
        raise ValueError(f"{folder} holds no model. {hint}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Save the model again.") from error
    return str(fields.get("model_type")) if isinstance(fields, dict) else "nameless"
