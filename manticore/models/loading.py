"""Load a pretrained component: safetensors only, never code from a checkpoint.

The model class is looked up in the families of the installed transformers, not by what the
checkpoint says about itself, so an `auto_map` in its config has no effect.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils.hub import cached_file

from manticore.models.families import FAMILIES
from manticore.models.supported import UnsupportedFamilyError, check_supported, unsupported_message
from manticore.models.weight_files import WEIGHT_FILES, check_header, first_line, weight_shards

# A config may name code to run: classes of its own, or an attention kernel on the hub.
CODE_FIELDS = (
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
)
# Arguments of `from_pretrained` that say where files are; they hold for the config too.
LOCATION_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


def load_component(
    path_or_name: str | os.PathLike[str],
    dtype: torch.dtype | str | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a causal language model of a supported family from a folder or the hub.

    Args:
        path_or_name: folder with `config.json` and safetensors weights, or a name on the hub.
        dtype: of the weights; None keeps the checkpoint's own.
        kwargs: passed to `from_pretrained`, for example `device_map`, `quantization_config`,
            `attn_implementation`, `revision`.

    Returns:
        The model in eval mode. Everything that can be wrong raises a `ValueError` (an
        `UnsupportedFamilyError` before any weight is read) that says what to do.
    """
    name = os.fspath(path_or_name)
    for key in ("trust_remote_code", "use_safetensors", "config"):
        if key in kwargs:
            raise ValueError(
                f"{key}={kwargs[key]!r} cannot be set: components are safetensors of a supported "
                "family, and code from a checkpoint is never run. Leave it out."
            )
    config = load_config(name, **kwargs)
    _check_weights(name, kwargs)
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    try:
        model, info = model_class.from_pretrained(
            name,
            config=config,
            dtype="auto" if dtype is None else dtype,
            use_safetensors=True,
            output_loading_info=True,
            **kwargs,
        )
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(
            f"The weights of {name!r} do not load: {first_line(error)}. The files are damaged or "
            "do not belong to its config.json. Fetch or save the checkpoint again."
        ) from error
    _check_complete(name, info)
    return model.eval()


def load_config(path_or_name: str | os.PathLike[str], **kwargs: Any) -> PreTrainedConfig:
    """The config of a component, checked, without anything in it that names code."""
    name = os.fspath(path_or_name)
    fields = _read_config(name, kwargs)
    model_type = fields.get("model_type")
    _refuse_fla(name, fields)
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedFamilyError(f"{name!r}: {unsupported_message(model_type)}")
    plain = {key: value for key, value in fields.items() if key not in CODE_FIELDS}
    try:
        config = CONFIG_MAPPING[model_type].from_dict(plain)
    except Exception as error:  # the validators of configs raise classes of their own
        raise ValueError(
            f"The config.json of {name!r} is not a valid {model_type} config: "
            f"{first_line(error)}. Correct that field or fetch the file again."
        ) from error
    check_supported(config)
    return config


def _refuse_fla(name: str, fields: dict[str, Any]) -> None:
    # Its mamba would load as that of transformers, with settings of its own left out.
    from manticore.models.imports_fla import is_fla_config

    if is_fla_config(fields):
        raise UnsupportedFamilyError(
            f"{name!r} holds a model of flash-linear-attention. `manticore export {name} --out "
            "FOLDER` makes one of ours of it; give that folder."
        )


def adapter_message(folder: str | os.PathLike[str]) -> str:
    """What a verb for models says of a folder with an adapter: how to make a model of it."""
    merge = f"peft.AutoPeftModelForCausalLM.from_pretrained('{folder}').merge_and_unload()"
    return (
        f"{folder} holds an adapter, not a model: PeftModel.from_pretrained(base, folder) uses it. "
        f'To merge it into its base model: python -c "import manticore, peft; {merge}'
        ".save_pretrained('merged')\". Then give the folder merged."
    )


def check_loadable(path_or_name: str | os.PathLike[str], **kwargs: Any) -> PreTrainedConfig:
    """Check config and weight files without building a model; returns the config."""
    config = load_config(path_or_name, **kwargs)
    _check_weights(os.fspath(path_or_name), kwargs)
    return config


def _check_complete(name: str, info: dict[str, Any]) -> None:
    """Weights and config must name the same parameters; otherwise a wrong model would run."""
    missing, surplus = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        problem = (
            f"lacks {len(missing)} weights that its config.json asks for (first: {missing[0]}), "
            "which would be random"
        )
    elif surplus:
        problem = (
            f"holds {len(surplus)} weights that its config.json does not know (first: "
            f"{surplus[0]}), which would be dropped"
        )
    else:
        return
    raise ValueError(
        f"The checkpoint {name!r} {problem}. Correct config.json, or fetch or save the checkpoint "
        "again."
    )


def _read_config(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    path = find_file(name, "config.json", kwargs)
    if path is None:
        if _is_folder(name) and (Path(name) / "adapter_config.json").exists():
            raise ValueError(adapter_message(name))
        if not _is_folder(name):
            raise ValueError(
                f"{name!r} is neither a folder here nor a model that the hub gives. Check the "
                "spelling, the network and your access."
            )
        raise ValueError(
            f"{name!r} has no config.json. Give a folder made by save_pretrained(), or the name "
            "of a model on the hub."
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"), object_hook=special_floats)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not valid JSON ({first_line(error)}). Fetch or save the checkpoint again."
        ) from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds a {type(fields).__name__}; a config is a JSON object.")
    return fields


def special_floats(fields: dict[str, Any]) -> Any:
    """An object of a config as it was: transformers writes infinity as {"__float__": "Infinity"}.

    For `json.loads(..., object_hook=special_floats)`.
    """
    return float(fields["__float__"]) if set(fields) == {"__float__"} else fields


def _check_weights(name: str, kwargs: dict[str, Any]) -> None:
    """Refuse pickles, and read the header of every local file before a model is built."""
    found = next((path for file in WEIGHT_FILES if (path := find_file(name, file, kwargs))), None)
    if found is None:
        _refuse_without_safetensors(name)
    assert found is not None
    if not _is_folder(name):
        return
    if (Path(name) / "adapter_config.json").exists():
        raise ValueError(
            f"The folder {name!r} holds an adapter beside the weights. Merge it first (peft: "
            "merge_and_unload(), then save_pretrained()) or remove adapter_config.json."
        )
    for path in weight_shards(found):
        check_header(path)


def _refuse_without_safetensors(name: str) -> None:
    folder = Path(name)
    pickles = sorted(p.name for p in folder.glob("*.bin")) if _is_folder(name) else []
    reason = (
        f"holds its weights as a pickle ({', '.join(pickles)}), which can run code when it is read"
        if pickles
        else f"has no safetensors weights within reach ({' or '.join(WEIGHT_FILES)})"
    )
    raise ValueError(
        f"{name!r} {reason}. Manticore reads safetensors only. If you trust the source, convert it "
        "once with transformers: AutoModelForCausalLM.from_pretrained(name, "
        "use_safetensors=False).save_pretrained(folder), and give that folder."
    )


def find_file(name: str, file: str, kwargs: dict[str, Any]) -> Path | None:
    """A file of the checkpoint on this disk (fetched from the hub if need be), or None.

    Raises a `ValueError` for a name that is neither a folder nor a model that the hub gives.
    """
    if _is_folder(name):
        path = Path(name) / kwargs.get("subfolder", "") / file
        return path if path.is_file() else None
    if _looks_like_path(name):
        raise ValueError(
            f"There is no folder {name!r}. Give an existing folder made by save_pretrained(), or "
            "the name of a model on the hub."
        )
    where = {key: kwargs[key] for key in (*LOCATION_ARGUMENTS, "subfolder") if key in kwargs}
    try:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **where)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name!r} is neither a folder here nor a model that the hub gives: "
            f"{first_line(error)}. Check the spelling, the network and your access."
        ) from error
    return None if found is None else Path(found)


def _is_folder(name: str) -> bool:
    return os.path.isdir(name)


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "~", os.sep))
        or name.count("/") > 1
        or os.path.exists(name)
        or not name
    )
