"""What `manticore export` writes: a model of another library's class, or ours and the reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from manticore.cli.model_folder import load_hybrid, model_type
from manticore.conversion.as_mixers import as_mixer_model
from manticore.conversion.configuration_converted import ConvertedConfig
from manticore.conversion.modeling_converted import ConvertedForCausalLM
from manticore.conversion.stock_layouts import as_stock_model
from manticore.conversion.stock_stacks import stack_as_stock_model
from manticore.conversion.transfer import identity
from manticore.hybrids.configuration_manticore import ManticoreConfig
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from manticore.hybrids.single import as_component
from manticore.models.exports_fla import fla_config, save_as_fla
from manticore.models.imports_fla import is_fla_folder, read_fla_model
from manticore.models.loading import load_component
from manticore.models.modeling_mixer_lm import MixerForCausalLM
from manticore.models.stock import NoStockClassError, is_ours
from manticore.models.weight_files import first_line


@dataclass(frozen=True)
class Export:
    """A model on its way out."""

    source: PreTrainedModel
    """As it was in its folder."""
    model: PreTrainedModel
    """As it is written: of a stock class, or the source itself."""
    reason: str | None
    """Why no stock class fits; None: one does."""
    fla: dict[str, Any] | None = None
    """The config.json of a class of flash-linear-attention, if it leaves as that."""

    @property
    def class_name(self) -> str:
        """Name of the class that is written."""
        return type(self.model).__name__ if self.fla is None else self.fla["architectures"][0]

    @property
    def model_type(self) -> str:
        """`model_type` of the config that is written."""
        found: str = self.model.config.model_type if self.fla is None else self.fla["model_type"]
        return found

    @property
    def loader(self) -> str:
        """Who loads it in the check: see `check_export`."""
        if self.fla is not None:
            return "fla"
        return "alone" if self.reason is None else "with-manticore"

    def save(self, folder: Path) -> None:
        """Write config and weights."""
        if self.fla is None:
            self.model.save_pretrained(folder)
        else:
            save_as_fla(self.model, folder)


def read_export(folder: Path, layout: str = "transformers") -> Export:
    """Load a model in its own dtype and find the class that it leaves as.

    Args:
        folder: of a model of ours or of flash-linear-attention.
        layout: `transformers` or `fla`, the library that shall load it.

    Raises:
        ValueError: there is nothing to export, or fla has no class for it.
    """
    source = _load(folder, any_class=layout == "fla")
    if layout == "fla":
        mixers = _as_mixers(source)
        return Export(source, mixers, None, fla_config(mixers.config))
    try:
        model = _as_stock(source)
    except NoStockClassError as error:
        return Export(source, source, str(error))
    model.generation_config = source.generation_config
    return Export(source, model, None)


def _load(folder: Path, any_class: bool) -> PreTrainedModel:
    found = model_type(folder)
    if is_fla_folder(folder):
        return read_fla_model(folder)
    if found == ManticoreConfig.model_type:
        return load_hybrid(folder, dtype="auto").eval()
    if found == ConvertedConfig.model_type:
        return _load_converted(folder)
    model = load_component(folder)
    if not (any_class or is_ours(model.config)):
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
        raise ValueError(
            f"The weights in {folder} do not load: {first_line(error)}. Copy or make the model "
            "again."
        ) from error
    wrong = sorted([*info["missing_keys"], *info["unexpected_keys"]])
    if wrong:
        raise ValueError(
            f"The weights in {folder} are not those of its config.json (first: {wrong[0]}). Copy "
            "or make the model again."
        )
    converted: PreTrainedModel = model.eval()
    return converted


def _as_mixers(source: Any) -> MixerForCausalLM:
    if isinstance(source, ManticoreForCausalLM):
        raise ValueError(
            "A hybrid of pretrained models has no layout in flash-linear-attention. Prune it to "
            "one component, export that, and export the result with --layout fla."
        )
    if isinstance(source, MixerForCausalLM) and not isinstance(source, ConvertedForCausalLM):
        return source
    is_converted = isinstance(source, ConvertedForCausalLM)
    return as_mixer_model(source if is_converted else identity(source))


def _as_stock(source: Any) -> PreTrainedModel:
    if isinstance(source, ManticoreForCausalLM):
        return as_component(source)
    if isinstance(source, ConvertedForCausalLM):
        return as_stock_model(source)
    if isinstance(source, MixerForCausalLM):
        return stack_as_stock_model(source)
    raise NoStockClassError(f"transformers has no class for a {type(source).__name__}.")
