"""What `manticore export` writes: a model of transformers' own class, or ours and the reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from manticore.cli.model_folder import load_hybrid, model_type
from manticore.conversion.configuration_converted import ConvertedConfig
from manticore.conversion.modeling_converted import ConvertedForCausalLM
from manticore.conversion.stock_layouts import as_stock_model
from manticore.hybrids.configuration_manticore import ManticoreConfig
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from manticore.hybrids.single import as_component
from manticore.models.loading import load_component
from manticore.models.modeling_mixer_lm import MixerForCausalLM
from manticore.models.stock import NoStockClassError, is_ours
from manticore.models.stock_mixers import mixers_as_stock_model


@dataclass(frozen=True)
class Export:
    """A model on its way out."""

    source: PreTrainedModel
    """As it was in its folder."""
    model: PreTrainedModel
    """As it is written: of a stock class, or the source itself."""
    reason: str | None
    """Why no stock class fits; None: one does."""

    @property
    def class_name(self) -> str:
        """Name of the class that is written."""
        return type(self.model).__name__


def read_export(folder: Path) -> Export:
    """Load a model in its own dtype and find the class that it leaves as.

    Raises:
        ValueError: no model of ours is in the folder.
    """
    source = _load(folder)
    try:
        model = _as_stock(source)
    except NoStockClassError as error:
        return Export(source, source, str(error))
    model.generation_config = source.generation_config
    return Export(source, model, None)


def _load(folder: Path) -> PreTrainedModel:
    found = model_type(folder)
    if found == ManticoreConfig.model_type:
        return load_hybrid(folder, dtype="auto").eval()
    if found == ConvertedConfig.model_type:
        return _load_converted(folder)
    model = load_component(folder)
    if not is_ours(model.config):
        raise ValueError(
            f"{folder} holds a {type(model).__name__}, which is a class of transformers already. "
            "There is nothing to export: copy the folder."
        )
    return model


def _load_converted(folder: Path) -> PreTrainedModel:
    try:
        model, info = ConvertedForCausalLM.from_pretrained(
            folder, dtype="auto", use_safetensors=True, output_loading_info=True
        )
    except (SafetensorError, OSError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ValueError(
            f"The weights in {folder} do not load: {first_line} Copy or make the model again."
        ) from error
    wrong = sorted([*info["missing_keys"], *info["unexpected_keys"]])
    if wrong:
        raise ValueError(
            f"The weights in {folder} are not those of its config.json (first: {wrong[0]}). Copy "
            "or make the model again."
        )
    converted: PreTrainedModel = model.eval()
    return converted


def _as_stock(source: Any) -> PreTrainedModel:
    if isinstance(source, ManticoreForCausalLM):
        return as_component(source)
    if isinstance(source, ConvertedForCausalLM):
        return as_stock_model(source)
    if isinstance(source, MixerForCausalLM):
        return mixers_as_stock_model(source)
    raise NoStockClassError(f"transformers has no class for a {type(source).__name__}.")
